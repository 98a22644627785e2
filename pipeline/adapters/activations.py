"""Running a model on calibration windows and measuring every distinct linear input once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.adapters.progress import track
from pipeline.numerics.gram import GramAccumulator

BATCH_TOKENS = 4096


@dataclass
class MeasuredInput:
    """An input, the linears that read it, and its second moments."""

    linears: list[str]
    accumulator: GramAccumulator


@dataclass
class _Recorder:
    """Collects inputs during forward passes; linears handed the same tensor share one entry."""

    inputs: dict[str, MeasuredInput] = field(default_factory=dict)
    _key_of: dict[str, str] = field(default_factory=dict)
    _last: tuple[Tensor, str] | None = None

    def record(self, name: str, tensor: Tensor) -> None:
        if name not in self._key_of:
            self._discover(name, tensor)
        if self._key_of[name] == name:
            self.inputs[name].accumulator.add(tensor)

    def _discover(self, name: str, tensor: Tensor) -> None:
        if self._last is not None and self._last[0] is tensor:
            key = self._last[1]
            self.inputs[key].linears.append(name)
        else:
            key = name
            self.inputs[key] = MeasuredInput(
                [name], GramAccumulator(tensor.shape[-1], tensor.device)
            )
        self._key_of[name] = key
        self._last = (tensor, key)


def measure(
    model: PreTrainedModel, windows: Sequence[Sequence[int]], device: torch.device
) -> dict[str, MeasuredInput]:
    """One pass over `windows` (equally long lists of token ids).

    Returns every distinct input of the linears inside the model, the output projection to the
    vocabulary left out, keyed by the first linear that reads it, in the order of execution.
    """
    recorder = _Recorder()
    output = model.get_output_embeddings()
    handles = [
        module.register_forward_pre_hook(_hook(recorder, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output
    ]
    try:
        with torch.inference_mode():
            model.to(device)
            batches = _batches(windows)
            for batch in track(batches, "calibrate", total=len(batches)):
                # The body alone: the projection to the vocabulary is not measured.
                model.base_model(input_ids=batch.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return recorder.inputs


def _batches(windows: Sequence[Sequence[int]]) -> list[Tensor]:
    """The windows as int64 matrices of about BATCH_TOKENS tokens."""
    rows = max(1, BATCH_TOKENS // len(windows[0]))
    return list(torch.split(torch.tensor([list(window) for window in windows]), rows))


def _hook(recorder: _Recorder, name: str) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        recorder.record(name, inputs[0])

    return hook
