"""Refinement keeps its promises: the objective never rises, and what is optimal stays."""

import pytest
import torch
from torch import Tensor

from pipeline.numerics.gptq import round_with_feedback
from pipeline.numerics.gram import dampened, output_error
from pipeline.numerics.grid import Grid, range_grid, storable
from pipeline.numerics.refine import refine
from pipeline.params.linear_recipe import GroupScheme
from tests.numerics.test_quantization import gram_of, inputs, weight


def rounded(*, num_bits: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor, Grid]:
    """A matrix, its dampened G, and GPTQ's integers with their grid."""
    matrix, gram = weight(32, 96, seed=21), gram_of(inputs(96, seed=22))
    grid = range_grid(matrix, GroupScheme(num_bits=num_bits, group_size=32, symmetric=symmetric))
    integers = round_with_feedback(matrix, gram, grid, dampening_frac=0.01)
    return matrix, dampened(gram, 0.01), integers, grid


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("num_bits", "left"),
    [(2, 0.97), (3, 0.97), (4, 0.97), (8, 1.0)],  # 8 bits: the next scale is far away
)
def test_the_error_falls_with_every_sweep(num_bits: int, left: float, symmetric: bool) -> None:
    matrix, gram, integers, grid = rounded(num_bits=num_bits, symmetric=symmetric)
    errors = [float(output_error(grid.values(integers) - matrix, gram))]
    for sweeps in (1, 2, 4):
        better, refitted = refine(matrix, gram, integers, grid, sweeps=sweeps)
        errors.append(float(output_error(refitted.values(better) - matrix, gram)))
        assert better.min() >= 0
        assert better.max() <= grid.largest
        assert torch.equal(better, better.round())
        assert torch.equal(refitted.scale, storable(refitted.scale))
        assert torch.equal(refitted.zero, grid.zero)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < left * errors[0]


def test_no_sweep_changes_nothing() -> None:
    matrix, gram, integers, grid = rounded(num_bits=4, symmetric=False)
    same, same_grid = refine(matrix, gram, integers, grid, sweeps=0)
    assert torch.equal(same, integers)
    assert torch.equal(same_grid.scale, grid.scale)


def test_a_matrix_on_its_grid_stays_as_it_is() -> None:
    _, gram, integers, grid = rounded(num_bits=4, symmetric=False)
    same, same_grid = refine(grid.values(integers), gram, integers, grid, sweeps=3)
    assert torch.equal(same, integers)
    assert torch.equal(same_grid.scale, grid.scale)


def test_integers_end_where_no_single_change_helps() -> None:
    matrix, gram, integers, grid = rounded(num_bits=4, symmetric=False)
    integers, grid = refine(matrix, gram, integers, grid, sweeps=100)
    best = output_error(grid.values(integers) - matrix, gram)
    for column in range(0, 96, 7):
        for change in (-1, 1):
            moved = integers.clone()
            moved[:, column] = (moved[:, column] + change).clamp(0, grid.largest)
            assert output_error(grid.values(moved) - matrix, gram) >= best * (1 - 1e-5)


def test_rows_do_not_see_each_other() -> None:
    matrix, gram, integers, grid = rounded(num_bits=3, symmetric=True)
    first, second = grid.split([10, 22])
    together = row_errors(matrix, gram, *refine(matrix, gram, integers, grid, sweeps=2))
    alone = row_errors(
        matrix[:10], gram, *refine(matrix[:10], gram, integers[:10], first, sweeps=2)
    )
    torch.testing.assert_close(together[:10], alone, rtol=0.1, atol=0)
    assert second.scale.shape[0] == 22


def row_errors(matrix: Tensor, gram: Tensor, integers: Tensor, grid: Grid) -> Tensor:
    delta = grid.values(integers) - matrix
    return ((delta @ gram) * delta).sum(1)
