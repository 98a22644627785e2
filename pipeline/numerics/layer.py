"""One decoder layer, quantized: a pure function of its weights, its statistics and the recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.domain.architecture import Fold
from pipeline.domain.params import IntegerWeights, Rounding
from pipeline.numerics.fold import apply_fold, search_fold
from pipeline.numerics.gptq import round_with_feedback
from pipeline.numerics.gram import output_error
from pipeline.numerics.grid import Grid, range_grid, search_clip


@dataclass(frozen=True)
class QuantizedLinear:
    """Integers (float32, out × in), their grid, and tr(ΔW G ΔWᵀ) / tr(W G Wᵀ)."""

    integers: Tensor
    grid: Grid
    relative_error: float


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
    shared_grams: Mapping[str, Tensor],
) -> QuantizedLayer:
    """Quantize every linear that has statistics.

    `tensors` are the layer's tensors by name relative to the layer (`mlp.up_proj.weight`), any
    float dtype; `grams` is G by linear name (`mlp.up_proj`), changed in place by folding, and
    `shared_grams` G by what `folds` name as a shared input. Folded scales go into the tensors of
    the operation before, rounded as the file stores them, so that the linears make up for exactly
    what is stored.
    """
    original = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    working = dict(original)
    scaled_grams = dict(grams)
    if recipe.scale_search:
        for fold in reversed(folds):  # from the last operation back: a fold changes the one before
            scales = search_fold(
                working,
                scaled_grams,
                fold,
                recipe,
                symmetric=symmetric,
                head_dim=head_dim,
                shared_grams=shared_grams,
            )
            stored = tensors[f"{fold.previous}.weight"].dtype
            apply_fold(working, scaled_grams, fold, scales, head_dim=head_dim, stored_dtype=stored)
    linears = {
        name: _quantize_linear(
            working[f"{name}.weight"], scaled_grams[name], recipe, symmetric=symmetric
        )
        for name in grams
    }
    weights = {f"{name}.weight" for name in grams}
    changed = {
        name: tensor.to(tensors[name].dtype)
        for name, tensor in working.items()
        if name not in weights and tensor is not original[name]
    }
    return QuantizedLayer(linears=linears, changed=changed)


def _quantize_linear(
    weight: Tensor, gram: Tensor, recipe: IntegerWeights, *, symmetric: bool
) -> QuantizedLinear:
    sizes = {"num_bits": recipe.num_bits, "group_size": recipe.group_size}
    if recipe.clip_search:
        grid = search_clip(weight, gram, **sizes, symmetric=symmetric)
    else:
        grid = range_grid(weight, **sizes, symmetric=symmetric)
    if recipe.rounding is Rounding.GPTQ:
        integers = round_with_feedback(weight, gram, grid, dampening_frac=recipe.dampening_frac)
    else:
        integers = grid.round(weight)
    error = output_error(grid.values(integers) - weight, gram)
    power = output_error(weight, gram)
    return QuantizedLinear(integers, grid, float(error / power) if power > 0 else 0.0)
