"""List every tensor of a variant: its stored scheme, its bits, its error, or why it was kept.

The rows go into `variant.json`. They also prove that a variant quantizes all that its recipe
implies. Errors are measured elsewhere.
"""

from collections.abc import Collection, Sequence
from math import prod

from pipeline.architectures.folds import split_layer_name
from pipeline.core.errors import FailureError
from pipeline.params.gguf_variants import GgufParams, GgufRounding
from pipeline.params.linear_recipe import LinearRecipe
from pipeline.params.variants import PackedLayout
from pipeline.records.variant import FULL_PRECISION_TYPES, TensorCoverage

SMALLEST_BLOCK = 32
# Linears that choose experts. They are a few thousandths of the weights; no release quantizes them.
ROUTER_NAMES = ("gate", "router", "shared_expert_gate")


def is_router(module: str) -> bool:
    """Tell whether a module chooses experts, by the last part of its name."""
    return module.rpartition(".")[2] in ROUTER_NAMES


def implied_by_packing(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a packed recipe quantizes this tensor: a matrix in a decoder layer, no router.

    Stacks of matrices count. Kernels of convolutions along a channel (… × 1 × n) do not.
    """
    return (
        split_layer_name(name) is not None
        and len(shape) > 1
        and min(shape[-2:]) > 1
        and not is_router(name.removesuffix(".weight"))
    )


def require_covered(
    coverage: Sequence[TensorCoverage], *, implied: Collection[str], kept: Collection[str]
) -> None:
    """Raise FailureError when less is quantized than the recipe implies.

    `implied` are the names of the tensors that a recipe of this kind quantizes. `kept` are those of
    them that this recipe explicitly leaves as they are.
    """
    rows = [row for row in coverage if row.name in implied]
    missed = [row for row in rows if row.scheme in FULL_PRECISION_TYPES and row.name not in kept]
    if not missed:
        return
    total = sum(prod(row.shape) for row in rows)
    left = sum(prod(row.shape) for row in rows if row.scheme in FULL_PRECISION_TYPES)
    expected = 1 - sum(prod(row.shape) for row in rows if row.name in kept) / total
    raise FailureError(
        f"{missed[0].name}: stayed {missed[0].scheme} ({missed[0].reason}); "
        f"{1 - left / total:.1%} of the linears' weights are quantized where the recipe implies "
        f"{expected:.1%}; this model needs another format"
    )


def packed_coverage(
    name: str,
    *,
    shape: tuple[int, ...],
    recipe: LinearRecipe,
    num_bytes: int,
    relative_error: float,
    error_ratio: float,
) -> TensorCoverage:
    """Describe a packed linear; `num_bytes` counts its weights, scales and zero points."""
    if recipe.layout is PackedLayout.FLOAT:
        scheme = "FP8 e4m3"
    else:
        input_bits = 8 if recipe.layout is PackedLayout.INT else 16
        zero_points = "symmetric" if recipe.symmetric else "asymmetric"
        scheme = f"W{recipe.num_bits}A{input_bits} {zero_points}"
    groups = "per channel" if recipe.group_size == shape[-1] else f"g{recipe.group_size}"
    return TensorCoverage(
        name=name,
        shape=shape,
        scheme=f"{scheme} {groups}",
        bits_per_weight=8 * num_bytes / prod(shape),
        relative_error=relative_error,
        error_ratio=error_ratio,
        reason=recipe.reason,
    )


def kept_coverage(
    name: str,
    *,
    shape: tuple[int, ...],
    dtype: str,
    num_bytes: int,
    folded: bool,
    reason: str | None,
) -> TensorCoverage:
    """Describe a tensor that is stored as in the base, or with AWQ's scales folded in.

    `dtype` is the stored type. `reason` says why a linear was kept; it is None for other tensors.
    """
    if folded:
        reason = "kept: AWQ's scales are folded in"
    elif reason is None and len(shape) == 1:
        reason = "kept: a vector"
    elif reason is None and is_router(name.removesuffix(".weight")):
        reason = "kept: chooses the experts"
    elif reason is None and implied_by_packing(name, shape):
        reason = "kept: calibration measured no input of it"
    elif reason is None:
        reason = "kept: not a linear inside a decoder layer"
    return TensorCoverage(
        name=name,
        shape=shape,
        scheme=dtype,
        bits_per_weight=8 * num_bytes / max(prod(shape), 1),
        relative_error=None,
        error_ratio=None,
        reason=reason,
    )


def gguf_coverage(
    name: str,
    *,
    shape: tuple[int, ...],
    stored_type: str,
    tensor_bits: float,
    relative_error: float | None,
    error_ratio: float | None,
    recipe: GgufParams,
) -> TensorCoverage:
    """Describe a tensor of a GGUF file, and say so where llama.cpp fell back to another type.

    llama.cpp mixes types by design: a type that differs from the recipe's is no fallback by itself.
    """
    block_weights = recipe.type.block_weights if recipe.type else SMALLEST_BLOCK
    if len(shape) == 1:
        reason = "kept: a vector"
    elif shape[-1] % block_weights:
        reason = (
            f"rows of {shape[-1]} do not divide by {block_weights}: llama.cpp fell back to "
            f"{stored_type}"
        )
    elif stored_type in FULL_PRECISION_TYPES:
        reason = "kept by llama.cpp"
    elif recipe.rounding is GgufRounding.GPTQ and relative_error and error_ratio is None:
        reason = f"rounded by llama.cpp: the numbers of {stored_type} are in a codebook"
    else:
        reason = None
    return TensorCoverage(
        name=name,
        shape=shape,
        scheme=stored_type,
        bits_per_weight=tensor_bits,
        relative_error=relative_error,
        error_ratio=error_ratio,
        reason=reason,
    )
