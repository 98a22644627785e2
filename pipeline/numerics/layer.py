"""One decoder layer, quantized: a pure function of its weights, its statistics and the recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from pipeline.architectures.folds import Fold
from pipeline.numerics.fold import fold_layer
from pipeline.numerics.gptq import dampened, round_with_feedback
from pipeline.numerics.gram import output_error
from pipeline.numerics.grid import Grid, range_grid, search_clip
from pipeline.numerics.refine import refine
from pipeline.params.params import IntegerWeights, Rounding


@dataclass(frozen=True)
class QuantizedLinear:
    """Integers (float32, out × in), their grid, and what they cost.

    `relative_error` is tr(ΔW G ΔWᵀ) / tr(W G Wᵀ), `error_ratio` is tr(ΔW G ΔWᵀ) over the same of
    rounding to nearest on the grid of each group's range.
    """

    integers: Tensor
    grid: Grid
    relative_error: float
    error_ratio: float


@dataclass(frozen=True)
class QuantizedLayer:
    """The linears by name, and the other tensors that folding changed (norms, biases)."""

    linears: dict[str, QuantizedLinear]
    changed: dict[str, Tensor]


def quantize_layer(
    tensors: Mapping[str, Tensor],
    grams: Mapping[str, Tensor],
    folds: Sequence[Fold],
    recipe: IntegerWeights,
    *,
    symmetric: bool,
    head_dim: int,
    group_sizes: Mapping[str, int] = MappingProxyType({}),
    shared_grams: Mapping[str, Tensor] = MappingProxyType({}),
) -> QuantizedLayer:
    """Quantize every linear that has statistics.

    `tensors` are the layer's tensors by name relative to the layer (`mlp.up_proj.weight`), any
    float dtype; `grams` is G by linear name (`mlp.up_proj`), changed in place by folding, and
    `shared_grams` G by what `folds` name as a shared input; `group_sizes` names the linears whose
    group size is not the recipe's. Folded scales go into the tensors of the operation before,
    rounded as the file stores them, so that the linears make up for exactly what is stored.
    """
    recipes = {
        name: recipe.model_copy(update={"group_size": group_sizes.get(name, recipe.group_size)})
        for name in grams
    }
    folded = fold_layer(
        tensors,
        grams,
        folds if recipe.scale_search else (),
        recipes,
        symmetric=symmetric,
        head_dim=head_dim,
        shared_grams=shared_grams,
    )
    linears: dict[str, QuantizedLinear] = {}
    for names in _together(folded.grams, recipes):
        # What is quantized goes: a large layer leaves no room for a second copy of it.
        sharing = {name: folded.tensors.pop(f"{name}.weight") for name in names}
        linears |= _quantize_linears(
            sharing, folded.grams[names[0]], recipes[names[0]], symmetric=symmetric
        )
    changed = {
        name: tensor.to(tensors[name].dtype)
        for name, tensor in folded.tensors.items()
        if name in folded.changed
    }
    return QuantizedLayer(linears=linears, changed=changed)


def _together(
    grams: Mapping[str, Tensor], recipes: Mapping[str, IntegerWeights]
) -> list[list[str]]:
    """The linears that are rounded together: those with the same G and the same groups."""
    together: dict[tuple[int, int], list[str]] = {}
    for name, gram in grams.items():
        together.setdefault((id(gram), recipes[name].group_size), []).append(name)
    return list(together.values())


def _quantize_linears(
    weights: Mapping[str, Tensor], gram: Tensor, recipe: IntegerWeights, *, symmetric: bool
) -> dict[str, QuantizedLinear]:
    """Linears that read the same input, rounded together: their rows do not see each other."""
    stacked = torch.cat(list(weights.values()))
    integers, grid = _rounded(stacked, gram, recipe, symmetric=symmetric)
    num_rows = [weight.shape[0] for weight in weights.values()]
    integers_of = torch.split(integers, num_rows)
    parts = zip(weights.items(), integers_of, grid.split(num_rows), strict=True)
    return {
        name: measured(weight, part, part_grid, gram, symmetric=symmetric)
        for (name, weight), part, part_grid in parts
    }


def _rounded(
    weight: Tensor, gram: Tensor, recipe: IntegerWeights, *, symmetric: bool
) -> tuple[Tensor, Grid]:
    """Integers and their grid by the recipe: range, rounding, refinement."""
    sizes = {"num_bits": recipe.num_bits, "group_size": recipe.group_size}
    if recipe.clip_search:
        grid = search_clip(weight, gram, **sizes, symmetric=symmetric)
    else:
        grid = range_grid(weight, **sizes, symmetric=symmetric)
    if recipe.rounding is Rounding.GPTQ:
        integers = round_with_feedback(weight, gram, grid, dampening_frac=recipe.dampening_frac)
    else:
        integers = grid.round(weight)
    steady = dampened(gram, recipe.dampening_frac)
    return refine(weight, steady, integers, grid, sweeps=recipe.refine_sweeps)


def measured(
    weight: Tensor, integers: Tensor, grid: Grid, gram: Tensor, *, symmetric: bool
) -> QuantizedLinear:
    """Integers and grid with what they cost `weight` (out × in, float32)."""
    plain = range_grid(
        weight, num_bits=grid.num_bits, group_size=grid.group_size, symmetric=symmetric
    )
    error, plain_error, power = (
        float(output_error(delta, gram))
        for delta in (
            grid.values(integers) - weight,
            plain.values(plain.round(weight)) - weight,
            weight,
        )
    )
    return QuantizedLinear(
        integers=integers,
        grid=grid,
        relative_error=error / power if power > 0 else 0.0,
        error_ratio=error / plain_error if plain_error > 0 else 1.0,
    )
