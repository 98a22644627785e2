"""Unpack one packed linear to float32, after its tensors are validated against its scheme.

The tensors are untrusted: no size, dtype or index is used before it is compared with the others.
The bit layouts are in `pipeline.numerics.packing`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import ceil

import torch
from torch import Tensor

from pipeline.checkpoint.stored_scheme import StoredScheme
from pipeline.core.errors import InputError, short_repr
from pipeline.numerics.grid import Grid
from pipeline.numerics.packing import awq, compressed_tensors, gptq
from pipeline.params.variants import PackedLayout

WORD_BITS = 32
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
INT32 = (torch.int32,)
REMEDY = "the checkpoint is damaged: get it again"

Shape = tuple[int, ...]


def unpacked_weight(module: str, tensors: Mapping[str, Tensor], scheme: StoredScheme) -> Tensor:
    """Unpack the weight that a packed linear stands for, float32, out × in.

    `tensors` has one tensor for each of `scheme.suffixes`. Raises InputError that names the module
    and the tensor that does not fit.
    """
    with _named(module):
        match scheme.layout:
            case PackedLayout.INT:
                return _by_channel(tensors, torch.int8)
            case PackedLayout.FLOAT:
                return _by_channel(tensors, torch.float8_e4m3fn)
            case _:
                integers, grid = _grouped(tensors, scheme)
                return grid.values(integers)


def unpacked_integers(
    module: str, tensors: Mapping[str, Tensor], scheme: StoredScheme
) -> tuple[Tensor, Grid]:
    """Unpack the integers of a linear with groups (float32, out × in) and their grid.

    Takes and raises the same as `unpacked_weight`.
    """
    with _named(module):
        return _grouped(tensors, scheme)


@contextmanager
def _named(module: str) -> Iterator[None]:
    """Turn a misfit into an InputError that names the module."""
    try:
        yield
    except _MisfitError as error:
        raise InputError(f"{short_repr(module)}: {error}; {REMEDY}") from error


class _MisfitError(Exception):
    """The tensors of a module do not fit its scheme or each other."""


def _grouped(tensors: Mapping[str, Tensor], scheme: StoredScheme) -> tuple[Tensor, Grid]:
    match scheme.layout:
        case PackedLayout.AWQ:
            return _awq(tensors, scheme)
        case PackedLayout.GPTQ:
            return _gptq(tensors, scheme)
        case PackedLayout.PACKED:
            return _packed(tensors, scheme)
        case _:
            raise _MisfitError(f"layout {scheme.layout} has no groups")


def _awq(tensors: Mapping[str, Tensor], scheme: StoredScheme) -> tuple[Tensor, Grid]:
    _require(tensors, "qweight", INT32)
    in_features, out_words = tensors["qweight"].shape
    groups = _num_groups(in_features, scheme)
    _require(tensors, "qzeros", INT32, (groups, out_words))
    _require(tensors, "scales", FLOATS, (groups, out_words * WORD_BITS // scheme.num_bits))
    return awq.unpack(tensors)


def _gptq(tensors: Mapping[str, Tensor], scheme: StoredScheme) -> tuple[Tensor, Grid]:
    _require(tensors, "qweight", INT32)
    in_words, out_features = tensors["qweight"].shape
    in_features = _unpacked_size("qweight", in_words, scheme)
    groups = _num_groups(in_features, scheme)
    out_words = out_features * scheme.num_bits // WORD_BITS
    if _unpacked_size("qweight", out_words, scheme) != out_features:
        raise _MisfitError(f"{out_features} outputs do not fill words of {scheme.num_bits} bits")
    _require(tensors, "qzeros", INT32, (groups, out_words))
    _require(tensors, "scales", FLOATS, (groups, out_features))
    _require(tensors, "g_idx", INT32, (in_features,))
    in_order = torch.arange(in_features) // (in_features // groups)
    if not torch.equal(tensors["g_idx"].to(torch.int64), in_order):
        raise _MisfitError("g_idx is not in order, as files with desc_act have it")
    return gptq.unpack(tensors, num_bits=scheme.num_bits)


def _packed(tensors: Mapping[str, Tensor], scheme: StoredScheme) -> tuple[Tensor, Grid]:
    _require(tensors, "weight_packed", INT32)
    _require(tensors, "weight_shape", (torch.int64, torch.int32), (2,))
    out_features, in_words = tensors["weight_packed"].shape
    shape = tensors["weight_shape"].tolist()
    in_features = shape[1]
    if shape[0] != out_features or ceil(in_features * scheme.num_bits / WORD_BITS) != in_words:
        raise _MisfitError(f"weight_shape is {shape}, but {out_features} × {in_words} words came")
    _unpacked_size("weight_packed", in_words, scheme)
    groups = _num_groups(in_features, scheme)
    _require(tensors, "weight_scale", FLOATS, (out_features, groups))
    if not scheme.symmetric:
        out_words = ceil(out_features * scheme.num_bits / WORD_BITS)
        _unpacked_size("weight_zero_point", out_words, scheme)
        _require(tensors, "weight_zero_point", INT32, (out_words, groups))
    return compressed_tensors.unpack_words(tensors, num_bits=scheme.num_bits)


def _by_channel(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    _require(tensors, "weight", (dtype,))
    _require(tensors, "weight_scale", FLOATS, (tensors["weight"].shape[0], 1))
    return compressed_tensors.channel_weight(tensors)


def _require(
    tensors: Mapping[str, Tensor],
    name: str,
    dtypes: tuple[torch.dtype, ...],
    shape: Shape | None = None,
) -> None:
    """Raise unless the tensor has one of the dtypes and this shape (None: any matrix)."""
    tensor = tensors[name]
    if tensor.dtype not in dtypes:
        raise _MisfitError(f"{name} is {tensor.dtype}, expected {dtypes[0]}")
    if shape is None and (tensor.ndim != 2 or tensor.numel() == 0):
        raise _MisfitError(f"{name} has shape {list(tensor.shape)}, expected a matrix")
    if shape is not None and tensor.shape != shape:
        raise _MisfitError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
    if dtypes is FLOATS and not tensor.isfinite().all():
        raise _MisfitError(f"{name} has a number that is not finite")


def _num_groups(in_features: int, scheme: StoredScheme) -> int:
    group_size = scheme.group_size or in_features
    if in_features % group_size:
        raise _MisfitError(f"{in_features} inputs do not divide by group_size {group_size}")
    return in_features // group_size


def _unpacked_size(name: str, num_words: int, scheme: StoredScheme) -> int:
    """Return how many integers a number of words holds; raise when they do not fill them."""
    if num_words * WORD_BITS % scheme.num_bits:
        raise _MisfitError(f"{name}: {num_words} words do not fit {scheme.num_bits} bits")
    return num_words * WORD_BITS // scheme.num_bits
