"""Streaming calibration: one decoder layer of weights and of statistics in memory at a time.

A work directory holds one file of statistics for each finished layer and, between layers, the
hidden states that enter the next one: float32, because that is what the layers compute in, so that
the result is that of the whole model. They are read and written batch by batch, so memory does not
grow with the number of tokens, and small ones stay in the system's page cache. The states that
leave a layer appear before its statistics, and those that entered it go away after: a kill at any
moment loses the layer in work and nothing else.

The same machine, threads and inputs give the same bytes. One and two threads gave the same bytes
for dense models; with experts, whose batches are of any size, an activation function that is cut
elsewhere for each number of threads can differ in its last bit.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.adapters.activations import LayerMeasurement, measuring
from pipeline.adapters.files import replacement
from pipeline.adapters.layered_model import LayeredModel
from pipeline.adapters.memory import map_large_blocks
from pipeline.adapters.progress import track
from pipeline.adapters.statistics import read_layer, write_layer
from pipeline.domain.quantized import LayerStatistics, LinearStatistics

BATCH_TOKENS = 4096
STATES_SUFFIX = ".states"
STATES_DTYPE = np.dtype("<f4")


def calibrate_layers(
    model_dir: Path, windows: Sequence[Sequence[int]], device: torch.device, work_dir: Path
) -> list[LayerStatistics]:
    """Leave one file for each decoder layer in `work_dir`, a resumable directory, and nothing else.

    `windows` are equally long lists of token ids. Returns what the files hold, in order.
    Raises InputError for an architecture that cannot be run layer by layer.
    """
    map_large_blocks()
    batches = _batches(windows)
    with torch.inference_mode():
        model = LayeredModel(model_dir, device)
        paths = [work_dir / f"{layer.prefix}.safetensors" for layer in model.layers]
        start = next((at for at, path in enumerate(paths) if not path.exists()), len(paths))
        if start < len(paths) and not _states_path(work_dir, start).exists():
            start = 0
            _write_states(_states_path(work_dir, 0), map(model.embed, batches))
        remaining = range(start, len(paths))
        for index in track(remaining, "calibrate", total=len(remaining)):
            _measure_layer(model, index, batches, work_dir, paths[index])
    for states in work_dir.glob(f"*{STATES_SUFFIX}"):
        states.unlink()
    return [read_layer(path) for path in paths]


def _measure_layer(
    model: LayeredModel, index: int, batches: Sequence[Tensor], work_dir: Path, path: Path
) -> None:
    """Run all batches through one layer: first its output appears, then its statistics."""
    entering = _states_path(work_dir, index)
    with model.loaded(index) as layer, measuring(layer) as measurement:
        made = (model.run(index, states) for states in _read_states(entering, batches))
        if index + 1 < len(model.layers):
            _write_states(_states_path(work_dir, index + 1), made)
        else:
            for _ in made:  # nothing comes after the last layer
                pass
    _write_measurement(path, measurement)
    entering.unlink()


def _write_measurement(path: Path, measurement: LayerMeasurement) -> None:
    record = LayerStatistics(
        inputs=tuple(
            LinearStatistics(
                key=key,
                file=path.name,
                in_features=entry.accumulator.in_features,
                num_tokens=entry.accumulator.num_tokens,
                linears=tuple(entry.linears),
            )
            for key, entry in measurement.inputs.items()
        ),
        experts=tuple(measurement.experts),
    )
    # Each matrix goes as soon as its triangle is packed.
    packed = {key: measurement.inputs.pop(key).accumulator.packed() for key in record.keys}
    write_layer(path, record, packed)


def _batches(windows: Sequence[Sequence[int]]) -> list[Tensor]:
    """The windows as int64 matrices of about BATCH_TOKENS tokens."""
    rows = max(1, BATCH_TOKENS // len(windows[0]))
    return list(torch.split(torch.tensor([list(window) for window in windows]), rows))


def _states_path(work_dir: Path, index: int) -> Path:
    """The hidden states that enter a layer, all windows one after the other."""
    return work_dir / f"{index:05d}{STATES_SUFFIX}"


def _write_states(path: Path, batches: Iterable[Tensor]) -> None:
    with replacement(path) as file:
        for states in batches:
            file.write(states.cpu().numpy().astype(STATES_DTYPE, copy=False).tobytes())


def _read_states(path: Path, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The states of each batch of token ids: batch × tokens × hidden."""
    num_tokens = sum(batch.numel() for batch in batches)
    hidden_size = path.stat().st_size // (num_tokens * STATES_DTYPE.itemsize)
    with path.open("rb") as file:
        for batch in batches:
            values = np.fromfile(file, STATES_DTYPE, count=batch.numel() * hidden_size)
            yield torch.from_numpy(values).view(*batch.shape, hidden_size)
