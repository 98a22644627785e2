"""Weights that make up for a drifted input: nearer to the base's output, and W itself without."""

import pytest
import torch
from torch import Tensor

from pipeline.numerics.drift import SHARE, DriftAccumulator, compensate_drift
from pipeline.numerics.gptq import round_with_feedback
from pipeline.numerics.grid import range_grid
from pipeline.params.linear_recipe import GroupScheme
from tests.numerics.test_quantization import gram_of, inputs, weight

CPU = torch.device("cpu")
WIDTH = 96


def drifted(base: Tensor) -> Tensor:
    """Inputs as they come from quantized layers: mixed a little, shrunk, and with noise."""
    generator = torch.Generator().manual_seed(7)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) * 0.02
    noise = torch.randn(base.shape, generator=generator) * base.std() * 0.1
    return 0.95 * base + base @ mixing + noise


def accumulated(base: Tensor, quantized: Tensor) -> DriftAccumulator:
    """In two batches of samples × tokens × channels."""
    accumulator = DriftAccumulator(WIDTH, CPU)
    for pair in zip(base.chunk(2), quantized.chunk(2), strict=True):
        accumulator.add(torch.cat([half.view(4, -1, WIDTH) for half in pair]))
    return accumulator


@pytest.fixture(scope="module")
def base() -> Tensor:
    return inputs(WIDTH, seed=5)


def test_moments_are_those_of_both_inputs(base: Tensor) -> None:
    quantized = drifted(base)
    accumulator = accumulated(base, quantized)
    difference = (base.double() - quantized.double()).T @ quantized.double() / len(base)
    assert accumulator.num_tokens == len(base)
    torch.testing.assert_close(accumulator.gram(), gram_of(quantized), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(accumulator.drift().double(), difference, rtol=1e-3, atol=1e-4)


def test_without_drift_weights_stay_as_they_are(base: Tensor) -> None:
    accumulator = accumulated(base, base)
    matrix = weight(32, WIDTH, seed=6)
    (same,) = compensate_drift(
        {"it": matrix}, accumulator.drift(), accumulator.gram(), dampening_frac=0.01
    ).values()
    assert torch.equal(same, matrix)


def test_weights_go_their_share_of_the_way_to_the_best_ones(base: Tensor) -> None:
    """The best ones by least squares on the samples themselves, in float64, with the dampening."""
    quantized, matrix = drifted(base), weight(32, WIDTH, seed=6)
    accumulator = accumulated(base, quantized)
    found = compensate_drift(
        {"it": matrix}, accumulator.drift(), accumulator.gram(), dampening_frac=0.01
    )["it"]
    x, x_q = base.double(), quantized.double()
    penalty = 0.01 * x_q.square().mean() * len(x_q)
    rows = torch.cat((x_q, penalty.sqrt() * torch.eye(WIDTH, dtype=torch.float64)))
    wanted = torch.cat(((x - x_q) @ matrix.double().T, torch.zeros(WIDTH, 32).double()))
    best = matrix.double() + torch.linalg.lstsq(rows, wanted).solution.T
    expected = matrix + SHARE * (best - matrix)
    assert (found - expected).norm() < 1e-3 * (expected - matrix).norm()


def test_what_is_rounded_then_is_nearer_to_the_output_of_the_base(base: Tensor) -> None:
    quantized, matrix = drifted(base), weight(32, WIDTH, seed=6)
    accumulator = accumulated(base, quantized)
    gram = accumulator.gram()
    better = compensate_drift({"it": matrix}, accumulator.drift(), gram, dampening_frac=0.01)["it"]
    errors = []
    for target in (matrix, better):
        grid = range_grid(target, GroupScheme(num_bits=4, group_size=32, symmetric=False))
        integers = round_with_feedback(target, gram, grid, dampening_frac=0.01)
        output = quantized @ grid.values(integers).T
        errors.append(float((base @ matrix.T - output).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_linears_that_share_an_input_are_corrected_alike(base: Tensor) -> None:
    accumulator = accumulated(base, drifted(base))
    matrix = weight(32, WIDTH, seed=6)
    drift, gram = accumulator.drift(), accumulator.gram()
    together = compensate_drift(
        {"a": matrix[:20], "b": matrix[20:]}, drift, gram, dampening_frac=0.01
    )
    alone = compensate_drift({"it": matrix}, drift, gram, dampening_frac=0.01)["it"]
    torch.testing.assert_close(torch.cat((together["a"], together["b"])), alone)
