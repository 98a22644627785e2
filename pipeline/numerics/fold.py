"""Folding AWQ's channel scales into the operation before, so that they cost nothing at run time.

Only the arithmetic is here; which operation comes before which linear is in
`pipeline.architectures.folds`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.architectures.folds import Fold, Rows
from pipeline.numerics.awq import search_scales
from pipeline.params.params import IntegerWeights


@dataclass(frozen=True)
class FoldedLayer:
    """A layer that computes the same with other weights.

    `tensors` are all of it, float32, of which folding touched those in `changed`; `grams` is G by
    linear, of the inputs it has now; `multipliers` is what the columns of a linear were multiplied
    by, float32, where that is not 1.
    """

    tensors: dict[str, Tensor]
    grams: dict[str, Tensor]
    changed: frozenset[str]
    multipliers: dict[str, Tensor]


def fold_layer(
    tensors: Mapping[str, Tensor],
    grams: Mapping[str, Tensor],
    folds: Sequence[Fold],
    recipes: Mapping[str, IntegerWeights],
    *,
    symmetric: bool,
    head_dim: int,
    shared_grams: Mapping[str, Tensor],
    norm_dtype: torch.dtype | None = None,
) -> FoldedLayer:
    """Search and apply all `folds` of a layer; arguments as in `search_fold`.

    `recipes` say by linear how it will be rounded. `tensors` may have any float dtype; `grams` is
    changed in place. Norms are rounded to `norm_dtype` (None: the dtype that each has).
    """
    working = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    scaled_grams = dict(grams)
    changed: set[str] = set()
    multipliers: dict[str, Tensor] = {}
    for fold in reversed(folds):  # from the last operation back: a fold changes the one before
        scales = search_fold(
            working,
            scaled_grams,
            fold,
            recipes[fold.linears[0]],
            symmetric=symmetric,
            head_dim=head_dim,
            shared_grams=shared_grams,
        )
        if bool((scales == 1).all()):
            continue
        stored = norm_dtype or tensors[f"{fold.previous}.weight"].dtype
        by_input = apply_fold(
            working, scaled_grams, fold, scales, head_dim=head_dim, stored_dtype=stored
        )
        multipliers |= dict.fromkeys(fold.linears, by_input)
        changed |= {f"{fold.previous}.weight", f"{fold.previous}.bias"}
        changed |= {f"{name}.weight" for name in (*fold.linears, *fold.unquantized)}
    return FoldedLayer(working, scaled_grams, frozenset(changed), multipliers)


def search_fold(
    working: Mapping[str, Tensor],
    grams: Mapping[str, Tensor],
    fold: Fold,
    recipe: IntegerWeights,
    *,
    symmetric: bool,
    head_dim: int,
    shared_grams: Mapping[str, Tensor],
) -> Tensor:
    """The scales of the operation before, float32, one for each of its outputs.

    `working` holds the layer's tensors, float32, by name relative to it; `grams` is G by linear,
    `shared_grams` G by the fold's `shared_input`. Linears without statistics count no error.
    """
    measured = [name for name in fold.linears if name in grams]
    gram = shared_grams[fold.shared_input] if fold.shared_input else grams[measured[0]]
    rows = _rows(fold, working[f"{fold.previous}.weight"].shape[0], gram.shape[0])
    num_outputs = rows.stop - rows.start
    width = head_dim if fold.by_value_head else num_outputs
    shared_by = gram.shape[0] // num_outputs
    scales = search_scales(
        [working[f"{name}.weight"] for name in measured],
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
) -> Tensor:
    """Divide the operation before by `scales` and multiply the linears' columns by them, in place.

    `grams` follows, in place too: the linears' input is divided. A norm is rounded to
    `stored_dtype`, and the scales are those that rounding really left. Returns what the columns
    were multiplied by, one number for each input of the linears.
    """
    weight, bias = f"{fold.previous}.weight", f"{fold.previous}.bias"
    in_features = working[f"{fold.linears[0]}.weight"].shape[1]
    rows = _rows(fold, working[weight].shape[0], in_features)
    before = working[weight][rows] + fold.norm_offset
    divided = before / scales.view(-1, *[1] * (before.dim() - 1))
    if before.dim() == 1:
        stored = (divided - fold.norm_offset).to(stored_dtype).to(torch.float32) + fold.norm_offset
        scales = torch.where(stored == 0, 1.0, before / stored)
        divided = torch.where(stored == 0, before, stored)
    working[weight] = _with_rows(working[weight], rows, divided - fold.norm_offset)
    if bias in working:
        working[bias] = _with_rows(working[bias], rows, working[bias][rows] / scales)
    width = head_dim if fold.by_value_head else scales.shape[0]
    shared_by = in_features // scales.shape[0]
    by_input = scales.view(-1, 1, width).expand(-1, shared_by, -1).reshape(-1)
    for name in (*fold.linears, *fold.unquantized):
        working[f"{name}.weight"] = working[f"{name}.weight"] * by_input
    _divide_grams(grams, fold.linears, by_input)
    return by_input


def _divide_grams(grams: dict[str, Tensor], linears: tuple[str, ...], scales: Tensor) -> None:
    """Divide G of `linears` on both sides; a G that others read as well is copied first."""
    readers = {name: grams[name] for name in linears if name in grams}
    others = {id(gram) for name, gram in grams.items() if name not in readers}
    divided: dict[int, Tensor] = {}
    for name, gram in readers.items():
        if id(gram) not in divided:
            own = gram.clone() if id(gram) in others else gram
            divided[id(gram)] = own.div_(scales[:, None]).div_(scales)
        grams[name] = divided[id(gram)]


def _rows(fold: Fold, num_rows: int, in_features: int) -> slice:
    """The rows of the operation before that make the input of `in_features` channels."""
    match fold.rows:
        case Rows.ALL:
            return slice(0, num_rows)
        case Rows.VALUES:  # query heads make as many rows as o_proj reads, keys and values the rest
            return slice(num_rows - (num_rows - in_features) // 2, num_rows)
        case Rows.SECOND_HALF:
            return slice(num_rows // 2, num_rows)


def _with_rows(tensor: Tensor, rows: slice, values: Tensor) -> Tensor:
    """A copy of `tensor` with other values in `rows`."""
    if rows.start == 0 and rows.stop == tensor.shape[0]:
        return values
    changed = tensor.clone()
    changed[rows] = values
    return changed
