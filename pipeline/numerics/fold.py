"""Fold AWQ's channel scales into the previous operation, so that they cost nothing at run time.

Only the arithmetic is here. `pipeline.architectures.folds` says which operation precedes which
linear, and `pipeline.numerics.awq` searches the scales.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.architectures.folds import Fold, Rows
from pipeline.numerics.awq import search_scales
from pipeline.numerics.decoder_layer import DecoderLayer, SharedInput
from pipeline.params.linear_recipe import GroupScheme


@dataclass(frozen=True)
class FoldedLayer:
    """A layer that computes the same output with other weights.

    `layer` has all tensors in float32, and G of its inputs after folding. `changed` names the
    tensors that folding changed. `scales` has, by the previous operation of a fold, one float32
    number for each of its outputs. `multipliers` has, by linear, the float32 numbers by which its
    columns were multiplied, where they are not all 1.
    """

    layer: DecoderLayer
    changed: frozenset[str]
    scales: dict[str, Tensor]
    multipliers: dict[str, Tensor]


def fold_layer(
    layer: DecoderLayer,
    folds: Sequence[Fold],
    schemes: Mapping[str, GroupScheme],
    *,
    head_dim: int,
    norm_dtype: torch.dtype | None = None,
    known_scales: Mapping[str, Tensor] | None = None,
) -> FoldedLayer:
    """Apply all `folds` of a layer, with the scales that are best for rounding its linears.

    `schemes` say how each linear will be rounded. Scales are searched unless `known_scales` has
    those of an earlier search, by previous operation. Tensors may have any float dtype; G is
    changed in place. Norms are rounded to `norm_dtype` (None: the dtype that each norm has).
    """
    tensors = {name: tensor.to(torch.float32) for name, tensor in layer.tensors.items()}
    working = replace(layer, tensors=tensors)
    changed: set[str] = set()
    searched: dict[str, Tensor] = {}
    multipliers: dict[str, Tensor] = {}
    for fold in reversed(folds):  # backwards, because a fold changes the operation before it
        if known_scales is None:
            scales = _search(working, fold, schemes, head_dim=head_dim)
        else:
            scales = known_scales[fold.previous]
        searched[fold.previous] = scales
        if bool((scales == 1).all()):
            continue
        stored_dtype = norm_dtype or layer.weight(fold.previous).dtype
        by_input = _apply(working, fold, scales, head_dim=head_dim, stored_dtype=stored_dtype)
        working = replace(working, inputs=_divided(working.inputs, fold.linears, by_input))
        multipliers |= dict.fromkeys(fold.linears, by_input)
        changed |= {f"{fold.previous}.weight", f"{fold.previous}.bias"}
        changed |= {f"{name}.weight" for name in (*fold.linears, *fold.unquantized)}
    return FoldedLayer(working, frozenset(changed), searched, multipliers)


def _search(
    working: DecoderLayer, fold: Fold, schemes: Mapping[str, GroupScheme], *, head_dim: int
) -> Tensor:
    """Search the scales of the previous operation, float32, one for each of its outputs.

    Linears without a scheme are not rounded, so they add no error.
    """
    rounded = [name for name in fold.linears if name in schemes]
    gram = next(
        shared.gram
        for shared in working.inputs
        if (shared.key == fold.shared_input if fold.shared_input else rounded[0] in shared.linears)
    )
    rows = _rows(fold, working.weight(fold.previous).shape[0], gram.shape[0])
    num_outputs = rows.stop - rows.start
    width = head_dim if fold.by_value_head else num_outputs
    shared_by = gram.shape[0] // num_outputs
    scales = search_scales(
        [working.weight(name) for name in rounded],
        gram,
        schemes[rounded[0]],
        head_dim=width,
        shared_by=shared_by,
    )
    return scales.view(-1, shared_by, width)[:, 0].reshape(-1)


def _apply(
    working: DecoderLayer,
    fold: Fold,
    scales: Tensor,
    *,
    head_dim: int,
    stored_dtype: torch.dtype,
) -> Tensor:
    """Divide the previous operation by `scales` and multiply the columns of the linears by them.

    Changes the tensors of `working` in place. A norm is rounded to `stored_dtype`; its scales are
    then the quotients that rounding left. Returns the multipliers of the columns, one number for
    each input of the linears.
    """
    tensors, weight, bias = working.tensors, f"{fold.previous}.weight", f"{fold.previous}.bias"
    in_features = working.weight(fold.linears[0]).shape[1]
    rows = _rows(fold, tensors[weight].shape[0], in_features)
    before = tensors[weight][rows] + fold.norm_offset
    divided = before / scales.view(-1, *[1] * (before.dim() - 1))
    if before.dim() == 1:
        stored = (divided - fold.norm_offset).to(stored_dtype).to(torch.float32) + fold.norm_offset
        scales = torch.where(stored == 0, 1.0, before / stored)
        divided = torch.where(stored == 0, before, stored)
    tensors[weight] = _with_rows(tensors[weight], rows, divided - fold.norm_offset)
    if bias in tensors:
        tensors[bias] = _with_rows(tensors[bias], rows, tensors[bias][rows] / scales)
    width = head_dim if fold.by_value_head else scales.shape[0]
    shared_by = in_features // scales.shape[0]
    by_input = scales.view(-1, 1, width).expand(-1, shared_by, -1).reshape(-1)
    for name in (*fold.linears, *fold.unquantized):
        tensors[f"{name}.weight"] = working.weight(name) * by_input
    return by_input


def _divided(
    inputs: Sequence[SharedInput], linears: Sequence[str], scales: Tensor
) -> tuple[SharedInput, ...]:
    """Divide the inputs of `linears` by `scales`, which divides their G by rows and columns.

    G is changed in place, or copied where other linears read the same input: those keep the old G.
    """
    divided: list[SharedInput] = []
    for shared in inputs:
        readers = tuple(name for name in shared.linears if name in linears)
        others = tuple(name for name in shared.linears if name not in linears)
        if readers:
            gram = shared.gram.clone() if others else shared.gram
            divided.append(
                SharedInput(shared.key, readers, gram.div_(scales[:, None]).div_(scales))
            )
        if others or not readers:
            divided.append(replace(shared, linears=others))
    return tuple(divided)


def _rows(fold: Fold, num_rows: int, in_features: int) -> slice:
    """Return the rows of the previous operation that make the input of `in_features` channels."""
    match fold.rows:
        case Rows.ALL:
            return slice(0, num_rows)
        case Rows.VALUES:  # query heads make as many rows as o_proj reads, keys and values the rest
            return slice(num_rows - (num_rows - in_features) // 2, num_rows)
        case Rows.SECOND_HALF:
            return slice(num_rows // 2, num_rows)


def _with_rows(tensor: Tensor, rows: slice, values: Tensor) -> Tensor:
    """Return `tensor` with other values in `rows`; `values` itself where those are all rows."""
    if rows.start == 0 and rows.stop == tensor.shape[0]:
        return values
    changed = tensor.clone()
    changed[rows] = values
    return changed
