"""Folding AWQ's channel scales into the operation before, so that they cost nothing at run time."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.domain.architecture import Fold
from pipeline.domain.params import IntegerWeights
from pipeline.numerics.awq import search_scales


def search_fold(
    working: Mapping[str, Tensor],
    grams: Mapping[str, Tensor],
    fold: Fold,
    recipe: IntegerWeights,
    *,
    symmetric: bool,
    head_dim: int,
) -> Tensor:
    """The scales of the operation before, float32, one for each of its outputs.

    `working` holds the layer's tensors, float32, by name relative to it; `grams` is G by linear.
    """
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


def apply_fold(
    working: dict[str, Tensor],
    grams: dict[str, Tensor],
    fold: Fold,
    scales: Tensor,
    *,
    head_dim: int,
    stored_dtype: torch.dtype,
) -> None:
    """Divide the operation before by `scales` and multiply the linears' columns by them, in place.

    `grams` follows: the linears' input is divided too. What is no quantized linear is rounded to
    `stored_dtype`, and the scales are those that rounding really left.
    """
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
    divided_gram = grams[fold.linears[0]] / torch.outer(by_input, by_input)
    for name in fold.linears:
        working[f"{name}.weight"] = working[f"{name}.weight"] * by_input
        grams[name] = divided_gram
