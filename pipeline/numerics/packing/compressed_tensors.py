"""Pack and unpack the compressed-tensors layouts of a linear: integers and a grid as tensors.

`pack-quantized` packs 3, 4 or 8-bit integers along the input features, and zero points along the
output features; `int-quantized` stores int8 and `float-quantized` e4m3 numbers, one scale for each
output channel (https://github.com/vllm-project/compressed-tensors, `compressors/`). The library
uses signed integers and adds half the range before it packs them, which gives the unsigned integers
used here.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.numerics.grid import Grid
from pipeline.numerics.packing import words

INT8_MIDDLE = 128


def pack_words(integers: Tensor, grid: Grid, *, symmetric: bool) -> dict[str, Tensor]:
    """Pack integers (out × in) and grid of a `pack-quantized` linear; return tensors by suffix.

    b is the number of bits of a weight.
    weight_packed int32 out × in·b/32, weight_scale float16 out × groups, weight_shape int64 [out,
    in], and for an asymmetric grid weight_zero_point int32 out·b/32 × groups.
    """
    tensors = {
        "weight_packed": words.pack(integers, grid.num_bits),
        "weight_scale": grid.scale.to(torch.float16).contiguous(),
        "weight_shape": torch.tensor(integers.shape, dtype=torch.int64),
    }
    if not symmetric:
        tensors["weight_zero_point"] = words.pack(grid.zero.T, grid.num_bits).T.contiguous()
    return tensors


def unpack_words(tensors: Mapping[str, Tensor], *, num_bits: int) -> tuple[Tensor, Grid]:
    """Unpack the integers (float32, out × in) and the grid of one `pack-quantized` linear.

    Other programs pad the last word of a row with zeros; weight_shape tells where the row ends.
    """
    out_features, in_features = tensors["weight_shape"].tolist()
    integers = words.unpack(tensors["weight_packed"], num_bits)[:, :in_features].to(torch.float32)
    scale = tensors["weight_scale"].to(torch.float32)
    if "weight_zero_point" in tensors:
        unpacked = words.unpack(tensors["weight_zero_point"].T, num_bits)[:, :out_features]
        zero = unpacked.T.to(torch.float32)
    else:
        zero = torch.full_like(scale, 2 ** (num_bits - 1))
    group_size = integers.shape[1] // scale.shape[1]
    return integers, Grid(scale=scale, zero=zero, num_bits=num_bits, group_size=group_size)


def pack_int8(integers: Tensor, grid: Grid) -> dict[str, Tensor]:
    """Pack an `int-quantized` linear: weight int8 out × in, weight_scale float32 out × 1.

    The zero points of the grid are 128.
    """
    return {
        "weight": (integers - INT8_MIDDLE).to(torch.int8),
        "weight_scale": grid.scale.contiguous(),
    }


def pack_fp8(values: Tensor, grid: Grid) -> dict[str, Tensor]:
    """Pack a `float-quantized` linear: weight e4m3 out × in, weight_scale float32 out × 1.

    `values` (float32, out × in) are e4m3 numbers, in units of the scale.
    """
    return {
        "weight": values.to(torch.float8_e4m3fn),
        "weight_scale": grid.scale.contiguous(),
    }


def channel_weight(tensors: Mapping[str, Tensor]) -> Tensor:
    """Unpack the weight of an `int-quantized` or `float-quantized` linear, float32 out × in."""
    return tensors["weight"].to(torch.float32) * tensors["weight_scale"].to(torch.float32)
