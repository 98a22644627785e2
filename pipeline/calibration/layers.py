"""Calibrate layer by layer: weights and statistics of one decoder layer are in memory at a time.

A work directory holds one file of statistics for each finished layer and, between layers, the
hidden states that enter the next one. The states that leave a layer are written before its
statistics, and the states that entered it are removed after. A kill at any moment loses only the
layer in work.

The same machine, threads and inputs give the same bytes. For dense models, one and two threads gave
the same bytes. Batches of experts have any size, so threads can split an activation function at
other places, and the last bit can differ. The sample of tokens is drawn in
`pipeline.calibration.sample`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.calibration.activations import LayerMeasurement, MeasuredInput, record_inputs
from pipeline.calibration.hidden_states import HiddenStates, token_batches
from pipeline.calibration.statistics import HEAD, read_layer, write_layer
from pipeline.checkpoint.layered_model import LayeredModel
from pipeline.core.allocator import map_large_blocks, release_free_memory
from pipeline.core.errors import InputError
from pipeline.core.progress import track
from pipeline.numerics.gram import GramAccumulator
from pipeline.records.statistics import LayerStatistics, LinearStatistics

BATCH_TOKENS = 4096


def calibrate_layers(
    model_dir: Path, windows: Sequence[Sequence[int]], device: torch.device, work_dir: Path
) -> list[LayerStatistics]:
    """Write the statistics of each decoder layer and of the head into `work_dir`, a file of each.

    `work_dir` is a resumable directory. `windows` are equally long lists of token ids. Returns the
    records of the files, in the order of the model. Raises InputError for an architecture that
    cannot be run layer by layer, and for inputs of a linear that are not finite.
    """
    map_large_blocks()
    batches = token_batches(windows, num_tokens=BATCH_TOKENS)
    with torch.inference_mode():
        model = LayeredModel(model_dir, device)
        paths = [work_dir / f"{layer.prefix}.safetensors" for layer in model.layers]
        head_path = work_dir / f"{HEAD}.safetensors"
        states = HiddenStates(work_dir, batches, num_layers=len(paths))
        start = next((index for index, path in enumerate(paths) if not path.exists()), len(paths))
        if start < len(paths) and not states.exist(start):
            start = 0
            states.write(0, map(model.embed, batches))
        remaining = range(start, len(paths))
        for index in track(remaining, "calibrate", total=len(remaining)):
            # First the layer's output or the head's input appears, then the layer's statistics.
            is_last = index + 1 == len(paths)
            with model.loaded(index) as layer, record_inputs(layer, GramAccumulator) as measurement:
                outputs = (model.run(index, batch) for batch in states.read(index))
                if is_last:
                    head = _head_measurement(model, outputs, device)
                else:
                    states.write(index + 1, outputs)
            measured = _packed(paths[index], measurement)
            if is_last:
                write_layer(head_path, *_packed(head_path, head))
            write_layer(paths[index], *measured)
            states.drop(index)
            release_free_memory()
    for index in range(len(paths)):
        states.drop(index)  # a kill can leave states of a finished layer
    return [read_layer(path) for path in (*paths, head_path)]


def _head_measurement(
    model: LayeredModel, outputs: Iterable[Tensor], device: torch.device
) -> LayerMeasurement[GramAccumulator]:
    """Measure the input of the output head; `outputs` are the states that leave the last layer."""
    measurement = LayerMeasurement(GramAccumulator)
    for states in outputs:
        inputs = model.head_input(states)
        if HEAD not in measurement.inputs:
            measurement.inputs[HEAD] = MeasuredInput([], GramAccumulator(inputs.shape[-1], device))
        measurement.inputs[HEAD].accumulator.add(inputs)
    return measurement


def _packed(
    path: Path, measurement: LayerMeasurement[GramAccumulator]
) -> tuple[LayerStatistics, dict[str, Tensor]]:
    """Make the record and the tensors of the file `path`, and remove the inputs of `measurement`.

    Raises InputError for inputs that are not finite.
    """
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
    # Each matrix is freed as soon as its triangle is packed.
    packed = {key: measurement.inputs.pop(key).accumulator.packed() for key in record.keys}
    for entry in record.inputs:
        if not packed[entry.key].isfinite().all():
            raise InputError(
                f"{(*entry.linears, entry.key)[0]}: its inputs on the calibration text are not "
                "finite numbers, so the model computes none; correct its config.json, or use "
                "another checkpoint"
            )
    return record, packed
