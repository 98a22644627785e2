"""Make the stored tensors of a quantized linear by its layout."""

from torch import Tensor

from pipeline.numerics.grid import Grid
from pipeline.numerics.packing import awq, compressed_tensors, gptq
from pipeline.params.linear_recipe import LinearRecipe
from pipeline.params.variants import PackedLayout


def stored_tensors(integers: Tensor, grid: Grid, recipe: LinearRecipe) -> dict[str, Tensor]:
    """Make the tensors of a linear, by the last part of their names.

    `integers` are float32, out × in; they are e4m3 numbers for FP8.
    """
    match recipe.layout:
        case PackedLayout.AWQ:
            return awq.pack(integers, grid)
        case PackedLayout.GPTQ:
            return gptq.pack(integers, grid)
        case PackedLayout.PACKED:
            return compressed_tensors.pack_words(integers, grid, symmetric=recipe.symmetric)
        case PackedLayout.INT:
            return compressed_tensors.pack_int8(integers, grid)
        case PackedLayout.FLOAT:
            return compressed_tensors.pack_fp8(integers, grid)
