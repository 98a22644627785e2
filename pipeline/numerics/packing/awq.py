"""Pack and unpack AutoAWQ's `gemm` layout of a linear: integers and a grid, stored as tensors.

Eight 4-bit integers share an int32 along the output features, in the order its kernel unpacks them
(https://github.com/casper-hansen/AutoAWQ, `awq/modules/linear/gemm.py`).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.numerics.grid import Grid
from pipeline.numerics.packing import words

NUM_BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble n of a word holds column ORDER[n]
RESTORED = tuple(ORDER.index(column) for column in range(len(ORDER)))


def pack(integers: Tensor, grid: Grid) -> dict[str, Tensor]:
    """Pack integers (float32, out × in) and their grid; return the tensors by suffix.

    qweight int32 in × out/8, qzeros int32 groups × out/8, scales float16 groups × out.
    """
    return {
        "qweight": words.pack(_reordered(integers.T, ORDER), NUM_BITS),
        "qzeros": words.pack(_reordered(grid.zero.T, ORDER), NUM_BITS),
        "scales": grid.scale.T.to(torch.float16).contiguous(),
    }


def unpack(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Grid]:
    """Unpack the integers (float32, out × in) and the grid of one linear."""
    integers, zero = (
        _reordered(words.unpack(tensors[name], NUM_BITS), RESTORED).T.to(torch.float32)
        for name in ("qweight", "qzeros")
    )
    scale = tensors["scales"].T.to(torch.float32)
    group_size = integers.shape[1] // scale.shape[1]
    return integers, Grid(scale=scale, zero=zero, num_bits=NUM_BITS, group_size=group_size)


def _reordered(integers: Tensor, order: tuple[int, ...]) -> Tensor:
    """Permute every eight integers along the last dimension by `order`."""
    return integers.reshape(*integers.shape[:-1], -1, len(order))[..., order].flatten(-2)
