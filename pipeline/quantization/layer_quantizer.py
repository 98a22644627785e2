"""The decoder layers of one base, quantized one by one as a recipe says."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipeline.architectures.folds import folds_of, head_dim_of
from pipeline.calibration.statistics import Statistics
from pipeline.checkpoint.reading import Checkpoint
from pipeline.numerics.fold import FoldedLayer, fold_layer
from pipeline.numerics.fp8 import fp8_layer
from pipeline.numerics.layer import QuantizedLayer, quantize_layer
from pipeline.params.params import IntegerWeights, PackedVariant
from pipeline.params.variants import CompressedTensorsParams, Scheme
from pipeline.quantization.grouping import Grouping
from pipeline.quantization.layer_inputs import LayerInputs, layer_inputs

NOTHING = QuantizedLayer(linears={}, changed={})
UNTOUCHED = FoldedLayer(tensors={}, grams={}, changed=frozenset(), multipliers={})


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
        self._checkpoint = checkpoint
        self._statistics = statistics
        self._recipe = recipe
        self._grouping = grouping
        self._folds = folds_of(architecture) if recipe.scale_search else ()
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
    def quantized(self, prefix: str, stored: Mapping[str, Tensor]) -> QuantizedLayer:
        """What becomes of the tensors `stored` of the layer `prefix`, or of what is no layer."""
        layer = NOTHING
        if self._linears(stored):
            inputs = self._inputs(prefix, stored)
            if self._served:
                inputs = self._served.corrected(prefix, inputs)
            layer = self._rounded(prefix, inputs)
        if self._served:
            self._served.advance(prefix, layer)
        return layer

    @torch.no_grad()
    def folded(self, prefix: str, stored: Mapping[str, Tensor]) -> FoldedLayer:
        """What `quantized` rounds, with G of its inputs in the base."""
        if not self._linears(stored):
            return UNTOUCHED
        inputs = self._inputs(prefix, stored)
        return fold_layer(
            inputs.tensors,
            inputs.grams,
            inputs.folds,
            {name: self._integers(size) for name, size in self._sizes(prefix, inputs).items()},
            symmetric=self._recipe.symmetric,
            head_dim=head_dim_of(self._checkpoint.config),
            shared_grams=inputs.shared_grams,
        )

    def _linears(self, stored: Mapping[str, Tensor]) -> list[str]:
        return [name for name in self._grouping.group_sizes if f"{name}.weight" in stored]

    def _inputs(self, prefix: str, stored: Mapping[str, Tensor]) -> LayerInputs:
        return layer_inputs(
            prefix,
            stored,
            self._linears(stored),
            self._statistics,
            self._folds,
            kept=self._grouping.kept,
            device=self.device,
        )

    def _rounded(self, prefix: str, inputs: LayerInputs) -> QuantizedLayer:
        recipe = self._recipe
        if isinstance(recipe, CompressedTensorsParams) and recipe.scheme is Scheme.FP8_DYNAMIC:
            return fp8_layer(inputs.tensors, inputs.grams)
        sizes = self._sizes(prefix, inputs)
        return quantize_layer(
            inputs.tensors,
            inputs.grams,
            inputs.folds,
            self._integers(max(sizes.values())),
            symmetric=recipe.symmetric,
            head_dim=head_dim_of(self._checkpoint.config),
            group_sizes=sizes,
            shared_grams=inputs.shared_grams,
        )

    def _sizes(self, prefix: str, inputs: LayerInputs) -> dict[str, int]:
        """The group size of each linear, by its name inside the layer."""
        return {name: self._grouping.group_sizes[f"{prefix}.{name}"] for name in inputs.grams}

    def _integers(self, group_size: int) -> IntegerWeights:
        shared = set(IntegerWeights.model_fields) - {"num_bits", "group_size"}
        return IntegerWeights(
            num_bits=self._recipe.num_bits,
            group_size=group_size,
            **self._recipe.model_dump(include=shared),
        )
