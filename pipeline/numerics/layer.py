"""One decoder layer, quantized: a pure function of its weights, its statistics and the recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.domain.architecture import Fold
from pipeline.domain.params import IntegerWeights, Rounding
from pipeline.numerics.awq import search_scales
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
) -> QuantizedLayer:
    """Quantize every linear that has statistics.

    `tensors` are the layer's tensors by name relative to the layer (`mlp.up_proj.weight`), any
    float dtype; `grams` is G by linear name (`mlp.up_proj`). Folded scales go into the tensors of
    the operation before, rounded as the file stores them, so that the linears make up for exactly
    what is stored.
    """
    original = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    working = dict(original)
    scaled_grams = dict(grams)
    if recipe.scale_search:
        for fold in reversed(folds):  # from the last operation back: a fold changes the one before
            scales = _search_fold(working, scaled_grams, fold, recipe, symmetric, head_dim)
            stored = tensors[f"{fold.previous}.weight"].dtype
            _apply_fold(working, scaled_grams, fold, scales, head_dim, stored)
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


def _search_fold(
    working: Mapping[str, Tensor],
    grams: Mapping[str, Tensor],
    fold: Fold,
    recipe: IntegerWeights,
    symmetric: bool,
    head_dim: int,
) -> Tensor:
    """The scales of the operation before, one for each of its outputs."""
    gram = grams[fold.linears[0]]
    num_outputs = working[f"{fold.previous}.weight"].shape[0]
    width = head_dim if fold.by_value_head else num_outputs
    shared_by = gram.shape[0] // num_outputs
    scales = search_scales(
        [working[f"{name}.weight"] for name in fold.linears],
        gram,
        num_bits=recipe.num_bits,
        group_size=recipe.group_size,
        symmetric=symmetric,
        head_dim=width,
        shared_by=shared_by,
    )
    return scales.view(-1, shared_by, width)[:, 0].reshape(-1)


def _apply_fold(
    working: dict[str, Tensor],
    grams: dict[str, Tensor],
    fold: Fold,
    scales: Tensor,
    head_dim: int,
    stored_dtype: torch.dtype,
) -> None:
    """Divide the operation before by `scales` and multiply the linears' columns by them."""
    previous = working[f"{fold.previous}.weight"]
    if fold.previous in grams:
        working[f"{fold.previous}.weight"] = previous / scales[:, None]
    else:
        divided = (previous / scales).to(stored_dtype).to(torch.float32)
        scales = torch.where(divided == 0, 1.0, previous / divided)
        working[f"{fold.previous}.weight"] = torch.where(divided == 0, previous, divided)
    if f"{fold.previous}.bias" in working:
        working[f"{fold.previous}.bias"] = working[f"{fold.previous}.bias"] / scales
    width = head_dim if fold.by_value_head else scales.shape[0]
    shared_by = grams[fold.linears[0]].shape[0] // scales.shape[0]
    by_input = scales.view(-1, 1, width).expand(-1, shared_by, -1).reshape(-1)
    for name in fold.linears:
        working[f"{name}.weight"] = working[f"{name}.weight"] * by_input
        grams[name] = grams[name] / torch.outer(by_input, by_input)


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
