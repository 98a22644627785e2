"""Quantize one decoder layer: a pure function of its weights, its statistics and the recipes.

The steps are folding, the grid, rounding and refinement; each is in a module of its own. No file is
read or written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.architectures.folds import Fold
from pipeline.numerics.decoder_layer import DecoderLayer
from pipeline.numerics.fold import fold_layer
from pipeline.numerics.fp8 import round_channels
from pipeline.numerics.gptq import round_with_feedback
from pipeline.numerics.gram import dampened, output_error
from pipeline.numerics.grid import Grid, range_grid, search_clip
from pipeline.numerics.refine import refine
from pipeline.params.linear_recipe import LinearRecipe
from pipeline.params.variants import PackedLayout, Rounding


@dataclass(frozen=True)
class QuantizedLinear:
    """Integers (float32, out × in; e4m3 numbers for FP8), their grid, and their errors.

    `relative_error` is tr(ΔW G ΔWᵀ) / tr(W G Wᵀ). `error_ratio` is tr(ΔW G ΔWᵀ), divided by that
    of rounding to nearest on the grid of each group's range.
    """

    integers: Tensor
    grid: Grid
    relative_error: float
    error_ratio: float


@dataclass(frozen=True)
class QuantizedLayer:
    """The linears by local name, and the other tensors that folding changed (norms, biases).

    `scales` are those that were folded, as in `FoldedLayer`.
    """

    linears: dict[str, QuantizedLinear]
    changed: dict[str, Tensor]
    scales: dict[str, Tensor]

    def values(self) -> dict[str, Tensor]:
        """Return the tensors of the layer that are not the base's, by local name."""
        weights = {
            f"{name}.weight": linear.grid.values(linear.integers)
            for name, linear in self.linears.items()
        }
        return weights | self.changed


def quantize_layer(
    layer: DecoderLayer,
    folds: Sequence[Fold],
    recipes: Mapping[str, LinearRecipe],
    *,
    head_dim: int,
) -> QuantizedLayer:
    """Quantize every linear of `recipes`, which all have statistics.

    The layer's tensors may have any float dtype; folding changes G of its inputs in place. Folded
    scales go into the tensors of the previous operation, rounded as the file stores them, so that
    the linears are multiplied by exactly what the stored tensors were divided by.
    """
    folded = fold_layer(layer, folds, recipes, head_dim=head_dim)
    tensors = folded.layer.tensors
    linears: dict[str, QuantizedLinear] = {}
    for shared in folded.layer.inputs:
        for recipe in dict.fromkeys(recipes[name] for name in shared.linears):
            names = [name for name in shared.linears if recipes[name] == recipe]
            # Weights are freed when they are quantized: a large layer may not fit twice.
            weights = {name: tensors.pop(f"{name}.weight") for name in names}
            linears |= quantize_together(weights, shared.gram, recipe)
    changed = {
        name: tensor.to(layer.tensors[name].dtype)
        for name, tensor in tensors.items()
        if name in folded.changed
    }
    return QuantizedLayer(linears, changed, folded.scales)


def quantize_together(
    weights: Mapping[str, Tensor], gram: Tensor, recipe: LinearRecipe
) -> dict[str, QuantizedLinear]:
    """Round linears that read the same input as one stacked matrix; its rows are independent."""
    stacked = torch.cat(list(weights.values()))
    if recipe.layout is PackedLayout.FLOAT:
        integers, grid = round_channels(stacked)
    else:
        grid = (
            search_clip(stacked, gram, recipe)
            if recipe.clip_search
            else range_grid(stacked, recipe)
        )
        if recipe.rounding is Rounding.GPTQ:
            frac = recipe.dampening_frac
            integers = round_with_feedback(stacked, gram, grid, dampening_frac=frac)
        else:
            integers = grid.round(stacked)
        steady = dampened(gram, recipe.dampening_frac)
        integers, grid = refine(stacked, steady, integers, grid, sweeps=recipe.refine_sweeps)
        del steady  # as large as G
    num_rows = [weight.shape[0] for weight in weights.values()]
    integers_of = torch.split(integers, num_rows)
    parts = zip(weights.items(), integers_of, grid.split(num_rows), strict=True)
    return {
        name: with_errors(weight, part, part_grid, gram, recipe)
        for (name, weight), part, part_grid in parts
    }


def with_errors(
    weight: Tensor, integers: Tensor, grid: Grid, gram: Tensor, recipe: LinearRecipe
) -> QuantizedLinear:
    """Measure the errors of integers on `grid` against `weight` (both float32, out × in)."""
    error, power = (
        float(output_error(delta, gram)) for delta in (grid.values(integers) - weight, weight)
    )
    plain_error = error  # FP8 is rounded to nearest, and has no other grid
    if recipe.layout is not PackedLayout.FLOAT:
        plain = range_grid(weight, recipe)
        plain_error = float(output_error(plain.values(plain.round(weight)) - weight, gram))
    return QuantizedLinear(
        integers=integers,
        grid=grid,
        relative_error=error / power if power > 0 else 0.0,
        error_ratio=error / plain_error if plain_error > 0 else 1.0,
    )
