"""The inputs that linears get where all layers before are quantized, beside those of the base.

Layers are quantized in order. The same tokens run through the model twice: as the base computes
them, and through what was made of each layer. In one pass both go through a layer's own weights,
which gives the base's states for the next layer and the moments that `pipeline.numerics.drift`
takes; once the layer is quantized, the others go through what it became. States are on the disk,
so that memory grows neither with tokens nor with layers, and those that enter a layer stay there
until the next one is begun: a layer that was cut short is begun again.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.calibration.activations import measuring
from pipeline.calibration.hidden_states import HiddenStates, token_batches
from pipeline.calibration.layers import BATCH_TOKENS
from pipeline.checkpoint.layered_model import LayeredModel
from pipeline.numerics.drift import DriftAccumulator, corrected
from pipeline.numerics.layer import QuantizedLayer
from pipeline.quantization.layer_inputs import LayerInputs


class QuantizedInputs:
    """Both streams of states through one model, kept in a directory that outlives a kill."""

    def __init__(
        self,
        base_dir: Path,
        windows: Sequence[Sequence[int]],
        directory: Path,
        *,
        device: torch.device,
        dampening_frac: float,
    ) -> None:
        """`windows` are equally long lists of token ids.

        Raises InputError for an architecture that cannot be run layer by layer.
        """
        self._dampening_frac = dampening_frac
        with torch.no_grad():
            self._model = LayeredModel(base_dir, device)
            batches = token_batches(windows, num_tokens=BATCH_TOKENS // 2)  # of each stream
            num_layers = len(self._model.layers)
            self._base, self._quantized = (
                HiddenStates(directory / name, batches, num_layers=num_layers)
                for name in ("base", "quantized")
            )
            if not any(map(self._quantized.exist, range(num_layers))):
                for stream in (self._base, self._quantized):
                    stream.write(0, map(self._model.embed, batches))
        self._index_of = {it.prefix: index for index, it in enumerate(self._model.layers)}

    def corrected(self, prefix: str, inputs: LayerInputs) -> LayerInputs:
        """The layer with G of the quantized inputs, and weights that make up for their drift."""
        index = self._index_of[prefix]
        for stream in (self._base, self._quantized):
            stream.drop(index - 1)
        with (
            torch.no_grad(),
            self._model.loaded(index) as layer,
            measuring(layer, DriftAccumulator) as measurement,
        ):
            pairs = zip(self._base.read(index), self._quantized.read(index), strict=True)
            made = (self._model.run(index, torch.cat(pair)).chunk(2)[0] for pair in pairs)
            self._base.write(index + 1, made)
        tensors, grams = dict(inputs.tensors), dict(inputs.grams)
        while measurement.inputs:  # what is done goes: a large layer leaves no room for all of it
            _, measured = measurement.inputs.popitem()
            inside = (linear.removeprefix(f"{prefix}.") for linear in measured.linears)
            names = [name for name in inside if name in inputs.grams]
            gram = measured.accumulator.gram()
            grams |= dict.fromkeys(names, gram)
            tensors |= corrected(
                {f"{name}.weight": tensors[f"{name}.weight"] for name in names},
                measured.accumulator.drift(),
                gram,
                dampening_frac=self._dampening_frac,
            )
        return replace(inputs, tensors=tensors, grams=grams)

    def advance(self, prefix: str, made: QuantizedLayer) -> None:
        """Run the quantized stream through what `made` leaves of the layer, if it is one."""
        index = self._index_of.get(prefix)
        if index is None or index + 1 == len(self._model.layers):
            return
        values = {f"{it}.weight": q.grid.values(q.integers) for it, q in made.linears.items()}
        replaced = {f"{prefix}.{name}": it for name, it in (values | made.changed).items()}
        self._run(self._quantized, index, replaced)
        if not made.linears:  # nothing was measured
            self._run(self._base, index, {})

    def _run(self, stream: HiddenStates, index: int, replaced: dict[str, Tensor]) -> None:
        with torch.no_grad(), self._model.loaded(index, replaced):
            batches = stream.read(index)
            stream.write(index + 1, (self._model.run(index, batch) for batch in batches))
