"""Quantize the decoder layers of one base, one by one, as a recipe says.

This module decides which statistics, folds and inputs a layer is quantized with. The algorithms are
in `pipeline.numerics`; files of variants are written in `packed_checkpoint`.
"""

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
    """Quantizes one decoder layer after the other, in the order of the model."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        statistics: Statistics,
        recipe: PackedVariant,
        grouping: Grouping,
        architecture: str,
        work_dir: Path,
    ) -> None:
        """Prepare for a recipe; `work_dir` is kept when the process is killed.

        Raises InputError for an architecture that cannot be folded, or run layer by layer, where
        the recipe needs that.
        """
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._statistics = statistics
        self._grouping = grouping
        self._folds = folds_of(architecture) if recipe.scale_search else ()
        self._head_dim = head_dim_of(checkpoint.text_values)
        self._work_dir = work_dir
        self._keeps_scales = recipe.align_samples > 0
        self._quantized_inputs = None
        if recipe.quantized_inputs:
            # Imported only where it is needed: it loads transformers, which takes seconds.
            from pipeline.quantization.quantized_inputs import QuantizedInputs

            self._quantized_inputs = QuantizedInputs(
                checkpoint.directory,
                statistics.token_ids(),
                work_dir,
                device=self.device,
                dampening_frac=recipe.dampening_frac,
            )

    @torch.inference_mode()
    def quantized(self, layer: DecoderLayer) -> QuantizedLayer:
        """Quantize the stored tensors of a layer; tensors outside all layers stay as they are."""
        recipes = self._grouping.of_layer(layer.prefix)
        quantized = QuantizedLayer({}, {}, {})
        if recipes:
            folds = self._folds_of(layer)
            if self._quantized_inputs:
                prepared = self._quantized_inputs.compensated(layer.to(self.device), recipes)
            else:
                prepared = self._with_inputs(layer, recipes, folds)
            quantized = quantize_layer(prepared, folds, recipes, head_dim=self._head_dim)
            if self._keeps_scales and folds:
                save_tensors(self._scales_path(layer.prefix), quantized.scales)
        if self._quantized_inputs:
            self._quantized_inputs.advance(layer.prefix, quantized.values())
        return quantized

    @torch.no_grad()
    def folded(self, layer: DecoderLayer) -> DecoderLayer:
        """Return the weights that `quantized` rounded, with their inputs, for alignment.

        The scales that `quantized` found are read from its work directory and folded in again.
        """
        recipes = self._grouping.of_layer(layer.prefix)
        if not recipes:
            return layer
        folds = self._folds_of(layer)
        prepared = self._with_inputs(layer, recipes, folds)
        scales: dict[str, Tensor] = {}
        if folds:
            path = self._scales_path(layer.prefix)
            stored = read_tensors(path, remedy=DELETE_AND_QUANTIZE)
            scales = {name: tensor.to(self.device) for name, tensor in stored.items()}
        folded = fold_layer(prepared, folds, recipes, head_dim=self._head_dim, known_scales=scales)
        return folded.layer

    def _folds_of(self, layer: DecoderLayer) -> tuple[Fold, ...]:
        """List the folds whose modules the layer has, and of which no linear is kept."""
        kept = self._grouping.kept
        modules = {name for name in layer.modules if layer.full_name(name) not in kept}
        return layer_folds(self._folds, modules)

    def _with_inputs(
        self, layer: DecoderLayer, linears: Collection[str], folds: Sequence[Fold]
    ) -> DecoderLayer:
        """Add the measured inputs of `linears` and of `folds`, and move all to the device."""
        inputs = self._statistics.inputs(layer.prefix, linears, folds=folds, device=self.device)
        return replace(layer.to(self.device), inputs=inputs)

    def _scales_path(self, prefix: str) -> Path:
        return self._work_dir / f"{prefix}.scales"
