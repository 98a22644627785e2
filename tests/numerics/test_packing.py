"""Bit layouts: round trips, and words worked out by hand."""

import pytest
import torch

from pipeline.numerics.grid import Grid
from pipeline.numerics.packing import pack_awq, pack_gptq, unpack_awq, unpack_gptq


def sample(*, out_features: int, in_features: int, group_size: int, zero: int | None) -> tuple:
    generator = torch.Generator().manual_seed(out_features)
    groups = in_features // group_size
    integers = torch.randint(0, 16, (out_features, in_features), generator=generator).float()
    zeros = torch.randint(0, 16, (out_features, groups), generator=generator).float()
    grid = Grid(
        scale=torch.rand(out_features, groups, generator=generator).half().float(),
        zero=zeros if zero is None else torch.full_like(zeros, zero),
        num_bits=4,
        group_size=group_size,
    )
    return integers, grid


@pytest.mark.parametrize(
    ("pack", "unpack", "zero"), [(pack_awq, unpack_awq, None), (pack_gptq, unpack_gptq, 8)]
)
@pytest.mark.parametrize("shape", [(8, 32, 16), (24, 96, 32), (40, 128, 128)])
def test_packing_loses_nothing(pack, unpack, zero, shape) -> None:
    out_features, in_features, group_size = shape
    integers, grid = sample(
        out_features=out_features, in_features=in_features, group_size=group_size, zero=zero
    )
    restored, restored_grid = unpack(pack(integers, grid))
    assert torch.equal(restored, integers)
    assert torch.equal(restored_grid.scale, grid.scale)
    assert torch.equal(restored_grid.zero, grid.zero)
    assert restored_grid.group_size == group_size


def test_an_awq_word_holds_eight_outputs_in_kernel_order() -> None:
    integers = torch.arange(8.0).view(8, 1).repeat(1, 16)  # output n holds n everywhere
    grid = Grid(torch.ones(8, 1), torch.zeros(8, 1), num_bits=4, group_size=16)
    word = pack_awq(integers, grid)["qweight"]
    assert word.shape == (16, 1)
    # From the lowest nibble: outputs 0, 2, 4, 6, 1, 3, 5, 7.
    assert word[0, 0].item() == 0x75316420


def test_a_gptq_word_holds_eight_inputs_in_order_and_zero_points_less_one() -> None:
    integers = torch.arange(16.0).view(1, 16).repeat(8, 1)  # input n holds n
    grid = Grid(torch.ones(8, 1), torch.full((8, 1), 8.0), num_bits=4, group_size=16)
    packed = pack_gptq(integers, grid)
    assert packed["qweight"].shape == (2, 8)
    assert packed["qweight"][0, 0].item() == 0x76543210
    assert packed["qweight"][1, 0].item() == 0xFEDCBA98 - 2**32
    assert packed["qzeros"][0, 0].item() == 0x77777777
    assert packed["g_idx"].tolist() == [0] * 16
