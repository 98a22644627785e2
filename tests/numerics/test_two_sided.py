"""Descent in a metric of both sides: the error falls, and what is optimal stays."""

import pytest
import torch
from torch import Tensor

from pipeline.numerics.gptq import round_with_feedback
from pipeline.numerics.gram import dampened
from pipeline.numerics.grid import Grid, range_grid
from pipeline.numerics.refine import refine
from pipeline.numerics.two_sided import descend
from pipeline.params.linear_recipe import GroupScheme
from tests.numerics.test_quantization import gram_of, inputs, weight

ROWS, COLUMNS = 48, 96


def problem(*, num_bits: int, symmetric: bool) -> tuple[Tensor, Tensor, Grid, Tensor, Tensor]:
    """A matrix, integers that one-sided refinement is done with, their grid, S and G."""
    matrix = weight(ROWS, COLUMNS, seed=31)
    outputs = dampened(gram_of(inputs(ROWS, seed=32)), 0.1)
    gram = dampened(gram_of(inputs(COLUMNS, seed=33)), 0.01)
    grid = range_grid(matrix, GroupScheme(num_bits=num_bits, group_size=32, symmetric=symmetric))
    integers = round_with_feedback(matrix, gram, grid, dampening_frac=0.01)
    integers, grid = refine(matrix, gram, integers, grid, sweeps=4)
    return matrix, integers, grid, outputs, gram


def error(integers: Tensor, matrix: Tensor, grid: Grid, outputs: Tensor, gram: Tensor) -> float:
    delta = grid.values(integers) - matrix
    return float(torch.trace(outputs @ delta @ gram @ delta.T))


def descended(
    integers: Tensor, matrix: Tensor, grid: Grid, outputs: Tensor, gram: Tensor
) -> Tensor:
    """What becomes of the integers of one matrix; checks that R followed them."""
    better = integers.clone(memory_format=torch.contiguous_format)[None]
    residual = outputs @ (matrix - grid.values(integers)) @ gram
    followed = residual.clone()[None]
    descend(followed, better, grid, outputs=outputs[None], inputs=gram[None])
    ends_at = outputs @ (matrix - grid.values(better[0])) @ gram
    assert torch.allclose(followed[0], ends_at, atol=1e-4 * float(residual.abs().max()))
    return better[0]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", [2, 3, 4])
def test_the_error_falls_call_by_call_within_the_grid(num_bits: int, symmetric: bool) -> None:
    matrix, integers, grid, outputs, gram = problem(num_bits=num_bits, symmetric=symmetric)
    errors = [error(integers, matrix, grid, outputs, gram)]
    for _ in range(4):
        integers = descended(integers, matrix, grid, outputs, gram)
        errors.append(error(integers, matrix, grid, outputs, gram))
        assert torch.equal(integers, integers.round())
        assert integers.min() >= 0
        assert integers.max() <= grid.largest
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_it_ends_where_no_single_step_helps() -> None:
    matrix, integers, grid, outputs, gram = problem(num_bits=4, symmetric=False)
    for _ in range(50):
        integers = descended(integers, matrix, grid, outputs, gram)
    best = error(integers, matrix, grid, outputs, gram)
    for place in range(0, ROWS * COLUMNS, 37):
        for step in (-1, 1):
            other = integers.clone()
            other.view(-1)[place] = (other.view(-1)[place] + step).clamp(0, grid.largest)
            assert error(other, matrix, grid, outputs, gram) >= best * (1 - 1e-5)


def test_a_matrix_on_its_grid_stays_as_it_is() -> None:
    _, integers, grid, outputs, gram = problem(num_bits=4, symmetric=True)
    same = descended(integers, grid.values(integers), grid, outputs, gram)
    assert torch.equal(same, integers)


def test_strongly_coupled_outputs_do_not_make_the_error_rise() -> None:
    """All rows alike: steps that each help alone would all repeat the same correction."""
    matrix, integers, grid, _, gram = problem(num_bits=3, symmetric=False)
    outputs = dampened(torch.ones(ROWS, ROWS), 0.01)
    before = error(integers, matrix, grid, outputs, gram)
    integers = descended(integers, matrix, grid, outputs, gram)
    assert error(integers, matrix, grid, outputs, gram) < before


@pytest.mark.slow
def test_matrices_side_by_side_do_not_see_each_other() -> None:
    """With as many rounds as it takes, each ends where it ends alone."""
    matrix, integers, grid, outputs, gram = problem(num_bits=4, symmetric=False)
    other = matrix.flip(0)
    both_grids = Grid(
        scale=torch.cat([grid.scale, grid.scale]),
        zero=torch.cat([grid.zero, grid.zero]),
        num_bits=grid.num_bits,
        group_size=grid.group_size,
    )
    wanted = torch.stack([matrix, other])
    both = torch.stack([integers, grid.round(other)])
    alone = [both[0].clone(), both[1].clone()]
    curvatures = {"outputs": outputs.expand(2, -1, -1), "inputs": gram.expand(2, -1, -1)}
    values = both_grids.values(both.flatten(0, 1)).view_as(both)
    residual = outputs @ (wanted - values) @ gram
    for _ in range(50):
        descend(residual, both, both_grids, **curvatures)
        alone = [
            descended(it, target, grid, outputs, gram)
            for it, target in zip(alone, wanted, strict=True)
        ]
    for at, target in enumerate(wanted):
        together, apart = (error(it, target, grid, outputs, gram) for it in (both[at], alone[at]))
        assert together == pytest.approx(apart, rel=0.02)
