"""Write a copy of the base with AWQ's scales folded in: it computes the same and rounds better.

This serves formats whose integers another program finds, such as GGUF. One decoder layer is in
memory at a time. Matrices are stored in float16, vectors in float32. Nothing is quantized here.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.architectures.folds import (
    folds_of,
    head_dim_of,
    layer_folds,
    names_by_layer,
    split_layer_name,
)
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.names import INDEX_FILE
from pipeline.checkpoint.reading import Checkpoint, save_tensors, shard_name, write_index
from pipeline.core.progress import track
from pipeline.numerics.decoder_layer import DecoderLayer
from pipeline.numerics.fold import fold_layer
from pipeline.params.linear_recipe import GroupScheme


@dataclass(frozen=True)
class FoldedCheckpoint:
    """A checkpoint whose linears may have scaled inputs.

    `multipliers` has, by linear, a vector of in_features: the columns of the weight were multiplied
    by it, and the input was divided by it.
    """

    directory: Path
    multipliers: Mapping[str, Tensor]

    def gram(self, statistics: Statistics, linear: str) -> Tensor:
        """Load G of the linear's input after folding, float32, in_features × in_features."""
        gram = statistics.gram(linear)
        scales = self.multipliers.get(linear)
        return gram if scales is None else gram.div_(scales[:, None]).div_(scales)

    def diagonal(self, statistics: Statistics, linear: str) -> Tensor:
        """Load the diagonal of that G, the mean of x² for each input channel, float32."""
        diagonal = statistics.diagonal(linear)
        scales = self.multipliers.get(linear)
        return diagonal if scales is None else diagonal / scales.square()


def write_folded(
    base_dir: Path,
    architecture: str,
    statistics: Statistics,
    scheme: GroupScheme,
    directory: Path,
) -> FoldedCheckpoint:
    """Fill the new `directory` with the base, its weights scaled for rounding by `scheme`.

    Raises InputError for an architecture whose folding is unknown.
    """
    folds = folds_of(architecture)
    checkpoint = Checkpoint(base_dir)
    by_layer = names_by_layer(checkpoint.names)
    measured = {split[0] for name in statistics.linears if (split := split_layer_name(name))}
    multipliers: dict[str, Tensor] = {}
    directory.mkdir()
    shards = track(by_layer.items(), "scale", total=len(by_layer))
    for number, (prefix, names) in enumerate(shards, start=1):
        layer = DecoderLayer.of(prefix, checkpoint.tensors(names))
        present = layer_folds(folds, layer.modules) if prefix in measured else ()
        if present:
            inputs = statistics.inputs(prefix, layer.modules, folds=present)
            folded = fold_layer(
                replace(layer, inputs=inputs),
                present,
                {name: scheme for shared in inputs for name in shared.linears},
                head_dim=head_dim_of(checkpoint.text_values),
                norm_dtype=torch.float32,
            )
            layer = folded.layer
            multipliers |= {
                layer.full_name(linear): scales for linear, scales in folded.multipliers.items()
            }
        tensors = {
            layer.full_name(name): tensor.to(torch.float32 if tensor.ndim == 1 else torch.float16)
            for name, tensor in layer.tensors.items()
        }
        save_tensors(directory / shard_name(number, len(by_layer)), tensors)
    write_index(directory)
    for file in base_dir.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name != INDEX_FILE:
            shutil.copyfile(file, directory / file.name)
    return FoldedCheckpoint(directory, multipliers)
