"""Measure the inputs that linears get when all previous layers are quantized.

Layers are quantized in order. Two streams of hidden states hold the same tokens: one as the base
computes them, one as the quantized layers compute them. Both streams run through the base's weights
of a layer. That gives the base's states for the next layer, and the moments for
`pipeline.numerics.drift`. When the layer is quantized, the second stream runs through the quantized
weights. The states are on disk, so that memory grows neither with tokens nor with layers. The
states that enter a layer are kept until the next layer begins, so that a layer can be repeated
after a kill. Quantizing itself is elsewhere.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.calibration.activations import record_inputs
from pipeline.calibration.hidden_states import HiddenStates, token_batches
from pipeline.calibration.layers import BATCH_TOKENS
from pipeline.checkpoint.layered_model import LayeredModel
from pipeline.numerics.decoder_layer import DecoderLayer, SharedInput
from pipeline.numerics.drift import DriftAccumulator, compensate_drift


class QuantizedInputs:
    """The two streams of hidden states of one model, kept on disk when the process is killed."""

    def __init__(
        self,
        base_dir: Path,
        windows: Sequence[Sequence[int]],
        directory: Path,
        *,
        device: torch.device,
        dampening_frac: float,
    ) -> None:
        """Open or make the streams for `windows`, equally long lists of token ids.

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
        self._index_of = {layer.prefix: index for index, layer in enumerate(self._model.layers)}

    def compensated(self, layer: DecoderLayer, linears: Collection[str]) -> DecoderLayer:
        """Measure the quantized inputs of `linears`, and compensate their drift in the weights."""
        index = self._index_of[layer.prefix]
        for stream in (self._base, self._quantized):
            stream.drop(index - 1)
        with (
            torch.no_grad(),
            self._model.loaded(index) as module,
            record_inputs(module, DriftAccumulator) as measurement,
        ):
            pairs = zip(self._base.read(index), self._quantized.read(index), strict=True)
            outputs = (self._model.run(index, torch.cat(pair)).chunk(2)[0] for pair in pairs)
            self._base.write(index + 1, outputs)
        local_name = {layer.full_name(name): name for name in linears}
        tensors, inputs = dict(layer.tensors), []
        while measurement.inputs:  # each is freed when it is done: all at once may not fit
            _, measured = measurement.inputs.popitem()
            names = tuple(local_name[name] for name in measured.linears if name in local_name)
            if not names:
                continue
            gram = measured.accumulator.gram()
            inputs.append(SharedInput(names[0], names, gram))
            tensors |= compensate_drift(
                {f"{name}.weight": layer.weight(name) for name in names},
                measured.accumulator.drift(),
                gram,
                dampening_frac=self._dampening_frac,
            )
        return replace(layer, tensors=tensors, inputs=tuple(inputs))

    def advance(self, prefix: str, quantized: Mapping[str, Tensor]) -> None:
        """Run the second stream through the layer with `quantized` tensors, by local name.

        Does nothing outside all layers.
        """
        index = self._index_of.get(prefix)
        if index is None or index + 1 == len(self._model.layers):
            return
        self._run(self._quantized, index, quantized)
        if not quantized:  # nothing was measured, so the base's states are not there yet
            self._run(self._base, index, {})

    def _run(self, stream: HiddenStates, index: int, replaced: Mapping[str, Tensor]) -> None:
        """Run a stream through layer `index`, with some tensors replaced."""
        with torch.no_grad(), self._model.loaded(index, replaced):
            batches = stream.read(index)
            stream.write(index + 1, (self._model.run(index, batch) for batch in batches))
