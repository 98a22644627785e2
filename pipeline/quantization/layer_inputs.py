"""One decoder layer as the numerics take it: everything by its name inside the layer.

Files name tensors and linears by where they are in the whole model; the algorithms of a layer do
not know which layer it is.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.architectures.folds import Fold, layer_folds
from pipeline.calibration.statistics import CPU, Statistics


@dataclass(frozen=True)
class LayerInputs:
    """`tensors` as stored, `grams` G by linear, `shared_grams` G by what `folds` name as shared."""

    tensors: dict[str, Tensor]
    grams: dict[str, Tensor]
    folds: tuple[Fold, ...]
    shared_grams: dict[str, Tensor]


def layer_inputs(
    prefix: str,
    tensors: Mapping[str, Tensor],
    linears: Sequence[str],
    statistics: Statistics,
    folds: Sequence[Fold],
    *,
    kept: Collection[str] = (),
    device: torch.device = CPU,
) -> LayerInputs:
    """The layer `prefix`, whose `tensors` and measured `linears` have their names in the model.

    Folds are those of `folds` that the layer has all parts of, none of them a linear in `kept`.
    """

    def inside(name: str) -> str:
        return name.removeprefix(f"{prefix}.")

    own = {inside(name): it.to(device) for name, it in tensors.items()}
    grams = statistics.grams(list(linears), device=device)
    left_alone = {inside(name) for name in kept}
    present = tuple(
        it
        for it in layer_folds(folds, {name.removesuffix(".weight") for name in own})
        if left_alone.isdisjoint((it.previous, *it.linears))
    )
    shared = sorted({it.shared_input for it in present if it.shared_input})
    return LayerInputs(
        tensors=own,
        grams={inside(name): gram for name, gram in grams.items()},
        folds=present,
        shared_grams={it: statistics.shared_gram(f"{prefix}.{it}").to(device) for it in shared},
    )
