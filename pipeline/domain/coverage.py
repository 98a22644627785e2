"""Accounting for every tensor: its stored scheme, its bits, its error, or why it was left alone."""

from collections.abc import Mapping, Sequence
from math import prod

from pipeline.domain.errors import InputError
from pipeline.domain.params import AwqParams, GgufParams, GptqParams
from pipeline.domain.quantized import TensorCoverage

ROW_ALIGNMENT = 8  # eight 4-bit integers share one 32-bit word
GROUP_SIZES = (256, 128, 64, 32, 16)
K_QUANT_ROW = 256  # weights in a superblock of llama.cpp's K-quants
FULL_PRECISION_TYPES = ("F32", "F16", "BF16")


def require_divisible(
    recipe: AwqParams | GptqParams, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise InputError when a linear cannot be cut into groups or packed into words.

    `shapes` is (out_features, in_features) by linear.
    """
    for name, (out_features, in_features) in shapes.items():
        if in_features % recipe.group_size:
            fitting = [
                size
                for size in GROUP_SIZES
                if all(shape[1] % size == 0 for shape in shapes.values())
            ]
            advice = f"use {fitting[0]}" if fitting else "leave this format out"
            raise InputError(
                f"group_size = {recipe.group_size}: does not divide the {in_features} inputs of "
                f"{name}; {advice} (what divides every linear of this model: "
                f"{', '.join(map(str, fitting)) or 'none'})"
            )
        if out_features % ROW_ALIGNMENT:
            raise InputError(
                f"{name}: {out_features} outputs; format {recipe.format} needs a multiple of "
                f"{ROW_ALIGNMENT}; use a gguf variant for this model"
            )


def packed_coverage(
    name: str,
    *,
    shape: tuple[int, ...],
    recipe: AwqParams | GptqParams,
    num_bytes: int,
    relative_error: float,
) -> TensorCoverage:
    """A linear in packed groups; `num_bytes` counts integers, scales and zero points."""
    zero = "symmetric" if recipe.symmetric else "asymmetric"
    return TensorCoverage(
        name=name,
        shape=shape,
        scheme=f"W{recipe.num_bits}A16 {zero} g{recipe.group_size}",
        bits_per_weight=8 * num_bytes / prod(shape),
        relative_error=relative_error,
        reason=None,
    )


def kept_coverage(
    name: str, *, shape: tuple[int, ...], dtype: str, num_bytes: int, folded: bool
) -> TensorCoverage:
    """A tensor of the base that is stored as it was, or with AWQ's scales folded in."""
    if folded:
        reason = "kept: AWQ's scales are folded in"
    elif len(shape) == 1:
        reason = "kept: a vector"
    else:
        reason = "kept: not a linear inside a decoder layer"
    return TensorCoverage(
        name=name,
        shape=shape,
        scheme=dtype,
        bits_per_weight=8 * num_bytes / prod(shape),
        relative_error=None,
        reason=reason,
    )


def gguf_coverage(
    name: str,
    *,
    shape: tuple[int, ...],
    stored_type: str,
    tensor_bits: float,
    relative_error: float | None,
    recipe: GgufParams,
) -> TensorCoverage:
    """A tensor of a GGUF file. Mixed types are llama.cpp's recipe; a fallback is said."""
    if stored_type in FULL_PRECISION_TYPES:
        reason = "kept: a vector" if len(shape) == 1 else "kept by llama.cpp"
    elif "_K" in recipe.type and shape[-1] % K_QUANT_ROW:
        reason = (
            f"rows of {shape[-1]} do not divide by {K_QUANT_ROW}: llama.cpp fell back to "
            f"{stored_type}"
        )
    else:
        reason = None
    return TensorCoverage(
        name=name,
        shape=shape,
        scheme=stored_type,
        bits_per_weight=tensor_bits,
        relative_error=relative_error,
        reason=reason,
    )


def bits_per_weight(coverage: Sequence[TensorCoverage]) -> float:
    """The average over all weights of the model."""
    weights = [prod(row.shape) for row in coverage]
    bits = sum(row.bits_per_weight * n for row, n in zip(coverage, weights, strict=True))
    return bits / sum(weights)
