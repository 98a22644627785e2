"""The tensors of a quantized linear as the recipe's format stores them."""

from torch import Tensor

from pipeline.numerics.grid import Grid
from pipeline.numerics.packing import awq, compressed_tensors, gptq
from pipeline.params.variants import (
    AwqParams,
    CompressedTensorsParams,
    GptqParams,
    PackedVariant,
    Scheme,
)


def stored_tensors(integers: Tensor, grid: Grid, recipe: PackedVariant) -> dict[str, Tensor]:
    """By the last part of their names. `integers` (out × in) are e4m3 numbers for FP8."""
    match recipe:
        case AwqParams():
            return awq.pack(integers, grid)
        case GptqParams():
            return gptq.pack(integers, grid)
        case CompressedTensorsParams(scheme=Scheme.W8A8):
            return compressed_tensors.pack_int8(integers, grid)
        case CompressedTensorsParams(scheme=Scheme.FP8_DYNAMIC):
            return compressed_tensors.pack_fp8(integers, grid)
        case CompressedTensorsParams():
            return compressed_tensors.pack_words(integers, grid, symmetric=recipe.symmetric)
