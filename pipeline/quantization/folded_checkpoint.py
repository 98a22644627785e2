"""A copy of the base that computes the same and rounds better: AWQ's scales, folded in.

For formats whose integers another program finds. One decoder layer is in memory at a time; matrices
are stored in float16, vectors in float32.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.architectures.folds import folds_of, head_dim_of, names_by_layer
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.names import INDEX_FILE
from pipeline.checkpoint.reading import Checkpoint, save_tensors, shard_name, write_index
from pipeline.core.progress import track
from pipeline.numerics.fold import fold_layer
from pipeline.params.params import IntegerWeights
from pipeline.quantization.layer_inputs import layer_inputs


@dataclass(frozen=True)
class FoldedCheckpoint:
    """`multipliers`: by linear, what its columns were multiplied by and its input divided."""

    directory: Path
    multipliers: Mapping[str, Tensor]

    def gram(self, statistics: Statistics, linear: str) -> Tensor:
        """G of the linear's input as it is now."""
        gram = statistics.grams([linear])[linear]
        scales = self.multipliers.get(linear)
        return gram if scales is None else gram.div_(scales[:, None]).div_(scales)

    def diagonal(self, statistics: Statistics, linear: str) -> Tensor:
        """The diagonal of that G, the mean of x² by input channel."""
        diagonal = statistics.diagonal(linear)
        scales = self.multipliers.get(linear)
        return diagonal if scales is None else diagonal / scales.square()


def write_folded(
    base_dir: Path,
    architecture: str,
    statistics: Statistics,
    recipe: IntegerWeights,
    directory: Path,
) -> FoldedCheckpoint:
    """Fill `directory` with the base, scaled for rounding by `recipe`, with zero points.

    Raises InputError for an architecture whose folding is unknown.
    """
    folds = folds_of(architecture)
    checkpoint = Checkpoint(base_dir)
    by_layer = names_by_layer(checkpoint.names)
    multipliers: dict[str, Tensor] = {}
    directory.mkdir()
    shards = track(by_layer.items(), "scale", total=len(by_layer))
    for number, (prefix, names) in enumerate(shards, start=1):
        tensors = checkpoint.tensors(names)
        if prefix:
            linears = [it for it in statistics.linears if f"{it}.weight" in tensors]
            inputs = layer_inputs(prefix, tensors, linears, statistics, folds)
            layer = fold_layer(
                inputs.tensors,
                inputs.grams,
                inputs.folds,
                dict.fromkeys(inputs.grams, recipe),
                symmetric=False,
                head_dim=head_dim_of(checkpoint.config),
                shared_grams=inputs.shared_grams,
                norm_dtype=torch.float32,
            )
            tensors = {f"{prefix}.{name}": it for name, it in layer.tensors.items()}
            multipliers |= {f"{prefix}.{name}": it for name, it in layer.multipliers.items()}
        save_tensors(directory / shard_name(number, len(by_layer)), _stored(tensors))
    write_index(directory)
    for file in base_dir.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name != INDEX_FILE:
            shutil.copyfile(file, directory / file.name)
    return FoldedCheckpoint(directory, multipliers)


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: it.to(torch.float32 if it.ndim == 1 else torch.float16)
        for name, it in tensors.items()
    }
