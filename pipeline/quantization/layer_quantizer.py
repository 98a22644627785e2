"""The decoder layers of one base, quantized one by one as a recipe says."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.architectures.folds import Fold, folds_of, head_dim_of, layer_folds
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.reading import Checkpoint, read_tensors, save_tensors
from pipeline.numerics.decoder_layer import DecoderLayer
from pipeline.numerics.fold import fold_layer
from pipeline.numerics.layer import QuantizedLayer, quantize_layer
from pipeline.params.params import PackedVariant
from pipeline.quantization.grouping import Grouping

DELETE_AND_QUANTIZE = "the file is damaged: delete its directory and quantize again"


class LayerQuantizer:
    """Quantizes one decoder layer after the other."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        statistics: Statistics,
        recipe: PackedVariant,
        grouping: Grouping,
        architecture: str,
        work_dir: Path,
    ) -> None:
        """`work_dir` outlives a kill. Raises InputError where the architecture does not fit."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._statistics = statistics
        self._grouping = grouping
        self._folds = folds_of(architecture) if recipe.scale_search else ()
        self._head_dim = head_dim_of(checkpoint.config)
        self._work_dir = work_dir
        self._keeps_scales = recipe.align_samples > 0
        self._served = None
        if recipe.quantized_inputs:
            # Imported where it is needed: with what runs a model, it takes seconds.
            from pipeline.quantization.quantized_inputs import QuantizedInputs

            self._served = QuantizedInputs(
                checkpoint.directory,
                statistics.token_ids(),
                work_dir,
                device=self.device,
                dampening_frac=recipe.dampening_frac,
            )

    @torch.inference_mode()
    def quantized(self, layer: DecoderLayer) -> QuantizedLayer:
        """Quantize the stored tensors of a layer; those outside all layers stay as they are."""
        recipes = self._grouping.of_layer(layer.prefix)
        made = QuantizedLayer({}, {}, {})
        if recipes:
            folds = self._folds_of(layer)
            if self._served:
                own = self._served.corrected(layer.to(self.device), recipes)
            else:
                own = self._measured(layer, recipes, folds)
            made = quantize_layer(own, folds, recipes, head_dim=self._head_dim)
            if self._keeps_scales and folds:
                save_tensors(self._scales_path(layer.prefix), made.scales)
        if self._served:
            self._served.advance(layer.prefix, made)
        return made

    @torch.no_grad()
    def folded(self, layer: DecoderLayer) -> DecoderLayer:
        """Return the weights that `quantized` rounded, with their inputs; for recipes that align.

        The scales that were found then are folded in again.
        """
        recipes = self._grouping.of_layer(layer.prefix)
        if not recipes:
            return layer
        folds = self._folds_of(layer)
        own = self._measured(layer, recipes, folds)
        scales: dict[str, Tensor] = {}
        if folds:
            path = self._scales_path(layer.prefix)
            stored = read_tensors(path, remedy=DELETE_AND_QUANTIZE)
            scales = {name: tensor.to(self.device) for name, tensor in stored.items()}
        return fold_layer(own, folds, recipes, head_dim=self._head_dim, known_scales=scales).layer

    def _folds_of(self, layer: DecoderLayer) -> tuple[Fold, ...]:
        """Find the folds of which the layer has all parts, none of them a linear that is kept."""
        kept = self._grouping.kept
        modules = {name for name in layer.modules if layer.full_name(name) not in kept}
        return layer_folds(self._folds, modules)

    def _measured(
        self, layer: DecoderLayer, linears: Collection[str], folds: Sequence[Fold]
    ) -> DecoderLayer:
        """Load the inputs of `linears`, and those that folds need, and move all to the device."""
        inputs = self._statistics.inputs(layer.prefix, linears, folds=folds, device=self.device)
        return replace(layer.to(self.device), inputs=inputs)

    def _scales_path(self, prefix: str) -> Path:
        return self._work_dir / f"{prefix}.scales"
