"""Bit layouts: round trips, and words worked out by hand."""

import pytest
import torch

from pipeline.numerics.grid import Grid
from pipeline.numerics.packing import awq, compressed_tensors, gptq, words


def sample(
    shape: tuple[int, int], *, group_size: int, num_bits: int = 4, symmetric: bool = False
) -> tuple[torch.Tensor, Grid]:
    """Random integers on a random grid; the zero points of a symmetric one are in the middle."""
    out_features, in_features = shape
    generator = torch.Generator().manual_seed(out_features)
    groups = in_features // group_size
    largest = 2**num_bits
    integers = torch.randint(0, largest, shape, generator=generator).float()
    zeros = torch.randint(0, largest, (out_features, groups), generator=generator).float()
    grid = Grid(
        scale=torch.rand(out_features, groups, generator=generator).half().float(),
        zero=torch.full_like(zeros, largest // 2) if symmetric else zeros,
        num_bits=num_bits,
        group_size=group_size,
    )
    return integers, grid


def assert_equal(restored: tuple[torch.Tensor, Grid], expected: tuple[torch.Tensor, Grid]) -> None:
    assert torch.equal(restored[0], expected[0])
    assert torch.equal(restored[1].scale, expected[1].scale)
    assert torch.equal(restored[1].zero, expected[1].zero)
    assert restored[1].group_size == expected[1].group_size


SHAPES = [((8, 32), 16), ((24, 96), 32), ((40, 128), 128)]


@pytest.mark.parametrize(("shape", "group_size"), SHAPES)
def test_awq_loses_nothing(shape: tuple[int, int], group_size: int) -> None:
    made = sample(shape, group_size=group_size)
    assert_equal(awq.unpack(awq.pack(*made)), made)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("shape", "group_size"), [((32, 32), 16), ((96, 96), 32), ((64, 96), 96)])
def test_gptq_loses_nothing(num_bits: int, shape: tuple[int, int], group_size: int) -> None:
    made = sample(shape, group_size=group_size, num_bits=num_bits, symmetric=True)
    packed = gptq.pack(*made)
    assert packed["qweight"].shape == (shape[1] * num_bits // 32, shape[0])
    assert_equal(gptq.unpack(packed, num_bits=num_bits), made)


@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("shape", "group_size"), SHAPES)
def test_compressed_tensors_loses_nothing(
    num_bits: int, symmetric: bool, shape: tuple[int, int], group_size: int
) -> None:
    made = sample(shape, group_size=group_size, num_bits=num_bits, symmetric=symmetric)
    packed = compressed_tensors.pack_words(*made, symmetric=symmetric)
    assert ("weight_zero_point" in packed) is not symmetric
    assert_equal(compressed_tensors.unpack_words(packed, num_bits=num_bits), made)


def test_int8_stands_for_the_same_weights() -> None:
    integers, grid = sample((24, 40), group_size=40, num_bits=8, symmetric=True)
    packed = compressed_tensors.pack_int8(integers, grid)
    assert packed["weight"].dtype is torch.int8
    assert torch.equal(compressed_tensors.channel_weight(packed), grid.values(integers))


def test_an_awq_word_holds_eight_outputs_in_kernel_order() -> None:
    integers = torch.arange(8.0).view(8, 1).repeat(1, 16)  # output n holds n everywhere
    grid = Grid(torch.ones(8, 1), torch.zeros(8, 1), num_bits=4, group_size=16)
    word = awq.pack(integers, grid)["qweight"]
    assert word.shape == (16, 1)
    # From the lowest nibble: outputs 0, 2, 4, 6, 1, 3, 5, 7.
    assert word[0, 0].item() == 0x75316420


def test_a_gptq_word_holds_eight_inputs_in_order_and_zero_points_less_one() -> None:
    integers = torch.arange(16.0).view(1, 16).repeat(8, 1)  # input n holds n
    grid = Grid(torch.ones(8, 1), torch.full((8, 1), 8.0), num_bits=4, group_size=16)
    packed = gptq.pack(integers, grid)
    assert packed["qweight"].shape == (2, 8)
    assert packed["qweight"][0, 0].item() == 0x76543210
    assert packed["qweight"][1, 0].item() == 0xFEDCBA98 - 2**32
    assert packed["qzeros"][0, 0].item() == 0x77777777
    assert packed["g_idx"].tolist() == [0] * 16


def test_three_bits_run_on_from_word_to_word() -> None:
    """32 integers are one number of 96 bits, the first in its lowest bits."""
    integers = torch.randint(0, 8, (32,), generator=torch.Generator().manual_seed(1))
    number = sum(value << (3 * place) for place, value in enumerate(integers.tolist()))
    packed = words.pack(integers, 3)
    assert [word % 2**32 for word in packed.tolist()] == [
        number >> shift & 0xFFFFFFFF for shift in (0, 32, 64)
    ]


def test_a_zero_point_of_compressed_tensors_lies_along_the_outputs() -> None:
    zero = torch.arange(8.0).view(8, 1)
    grid = Grid(torch.ones(8, 1), zero, num_bits=4, group_size=16)
    packed = compressed_tensors.pack_words(torch.zeros(8, 16), grid, symmetric=False)
    assert packed["weight_zero_point"].tolist() == [[0x76543210]]
    assert packed["weight_shape"].tolist() == [8, 16]
