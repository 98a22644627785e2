"""Pack and unpack AutoGPTQ's layout of a linear (GPTQ v1): integers and a grid as tensors.

Weights of 2, 3, 4 or 8 bits are packed along the input features, zero points along the output
features, each zero point stored less one (https://github.com/AutoGPTQ/AutoGPTQ,
`auto_gptq/nn_modules/qlinear/qlinear_cuda.py`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.numerics.grid import Grid
from pipeline.numerics.packing import words


def pack(integers: Tensor, grid: Grid) -> dict[str, Tensor]:
    """Pack integers (out × in) and their grid; return the tensors by suffix.

    b is the number of bits of a weight.
    qweight int32 in·b/32 × out, qzeros int32 groups × out·b/32, scales float16 groups × out, g_idx
    int32 in (the group of each input). Zero points are 1 … 2^b.
    """
    inputs = torch.arange(integers.shape[1], dtype=torch.int32, device=integers.device)
    return {
        "qweight": words.pack(integers, grid.num_bits).T.contiguous(),
        "qzeros": words.pack(grid.zero.T - 1, grid.num_bits),
        "scales": grid.scale.T.to(torch.float16).contiguous(),
        "g_idx": inputs // grid.group_size,
    }


def unpack(tensors: Mapping[str, Tensor], *, num_bits: int) -> tuple[Tensor, Grid]:
    """Unpack the integers (float32, out × in) and the grid of one linear without act-order."""
    integers = words.unpack(tensors["qweight"].T, num_bits).to(torch.float32)
    zero = words.unpack(tensors["qzeros"], num_bits).T.to(torch.float32) + 1
    scale = tensors["scales"].T.to(torch.float32)
    group_size = integers.shape[1] // scale.shape[1]
    return integers, Grid(scale=scale, zero=zero, num_bits=num_bits, group_size=group_size)
