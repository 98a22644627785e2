"""Bit layouts of the AWQ and GPTQ checkpoints: integers and grids to stored tensors and back.

Both put eight 4-bit integers into one int32. AWQ (AutoAWQ's `gemm` version) packs along the output
features, in the order its kernel unpacks them; GPTQ (version 1, AutoGPTQ's) packs weights along the
input features and zero points along the output features, each zero point stored less one.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.numerics.grid import Grid

NUM_BITS = 4
PER_WORD = 32 // NUM_BITS
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble n of a word holds column AWQ_ORDER[n]
PLAIN_ORDER = tuple(range(PER_WORD))

AWQ_SUFFIXES = ("qweight", "qzeros", "scales")
GPTQ_SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


def pack_awq(integers: Tensor, grid: Grid) -> dict[str, Tensor]:
    """The tensors of one AWQ linear by suffix.

    qweight int32 in × out/8, qzeros int32 groups × out/8, scales float16 groups × out.
    """
    return {
        "qweight": _pack(integers.T, AWQ_ORDER),
        "qzeros": _pack(grid.zero.T, AWQ_ORDER),
        "scales": grid.scale.T.to(torch.float16).contiguous(),
    }


def unpack_awq(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Grid]:
    """Integers (out × in) and grid of one AWQ linear."""
    integers = _unpack(tensors["qweight"], AWQ_ORDER).T
    zero = _unpack(tensors["qzeros"], AWQ_ORDER).T
    return integers, _grid(integers, zero, tensors["scales"])


def pack_gptq(integers: Tensor, grid: Grid) -> dict[str, Tensor]:
    """The tensors of one GPTQ linear by suffix.

    qweight int32 in/8 × out, qzeros int32 groups × out/8, scales float16 groups × out, g_idx int32
    in (the group of each input).
    """
    inputs = torch.arange(integers.shape[1], dtype=torch.int32, device=integers.device)
    return {
        "qweight": _pack(integers, PLAIN_ORDER).T.contiguous(),
        "qzeros": _pack(grid.zero.T - 1, PLAIN_ORDER),
        "scales": grid.scale.T.to(torch.float16).contiguous(),
        "g_idx": inputs // grid.group_size,
    }


def unpack_gptq(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Grid]:
    """Integers (out × in) and grid of one GPTQ linear without act-order."""
    integers = _unpack(tensors["qweight"].T, PLAIN_ORDER)
    zero = _unpack(tensors["qzeros"], PLAIN_ORDER).T + 1
    return integers, _grid(integers, zero, tensors["scales"])


def _grid(integers: Tensor, zero: Tensor, scales: Tensor) -> Grid:
    group_size = integers.shape[1] // scales.shape[0]
    return Grid(
        scale=scales.T.to(torch.float32), zero=zero, num_bits=NUM_BITS, group_size=group_size
    )


def _pack(integers: Tensor, order: tuple[int, ...]) -> Tensor:
    """Pack along the last dimension, a multiple of 8: … × n to int32 … × n/8."""
    words = integers.to(torch.int64).reshape(*integers.shape[:-1], -1, PER_WORD)[..., order]
    shifts = torch.arange(0, 32, NUM_BITS, device=integers.device)
    unsigned = (words << shifts).sum(-1)
    return torch.where(unsigned >= 2**31, unsigned - 2**32, unsigned).to(torch.int32).contiguous()


def _unpack(words: Tensor, order: tuple[int, ...]) -> Tensor:
    """The inverse of `_pack`, as float32."""
    shifts = torch.arange(0, 32, NUM_BITS, device=words.device)
    nibbles = (words.to(torch.int64).unsqueeze(-1) >> shifts) & (2**NUM_BITS - 1)
    restored = torch.empty_like(nibbles)
    restored[..., order] = nibbles
    return restored.flatten(-2).to(torch.float32)
