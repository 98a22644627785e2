"""calibrate: one pass over calibration text keeps the second moment of every linear input.

Everything a variant needs to know about the data is here; no later stage runs the model to
quantize it.
"""

import torch

from pipeline.adapters.activations import MeasuredInput, measure
from pipeline.adapters.calibration_text import calibration_sample, write_token_ids
from pipeline.adapters.checkpoint import tokenizer_of, unpacked_model
from pipeline.adapters.files import directory_records, new_directory, write_record
from pipeline.adapters.manifest_file import read_base_manifest
from pipeline.adapters.progress import note
from pipeline.adapters.room import fetched_source, require_room
from pipeline.adapters.statistics import file_of, write_grams
from pipeline.domain.layout import Layout
from pipeline.domain.manifest import tree_digest
from pipeline.domain.params import Params
from pipeline.domain.quantized import LinearStatistics, StatisticsRecord
from pipeline.domain.stage_needs import calibrate_need


def run(layout: Layout, params: Params) -> None:
    """Write `artifacts/statistics`. Raises InputError for unusable data, or too little room."""
    calibration = params.calibration
    base = read_base_manifest(layout)
    require_room(layout, calibrate_need(fetched_source(layout), params))
    sample = calibration_sample(layout, params, tokenizer_of(layout.base_dir))
    windows = sample.windows
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    note(f"calibrate: {len(windows)} samples of {calibration.max_seq_length} tokens on {device}")
    inputs = measure(unpacked_model(layout.base_dir), windows, device)
    with new_directory(layout.statistics_dir) as partial:
        for file, keys in _keys_by_file(inputs).items():
            write_grams(partial, file, {key: inputs[key].accumulator.gram() for key in keys})
        write_token_ids(partial / layout.token_ids_path.name, windows)
        files = directory_records(partial)
        record = StatisticsRecord(
            base_digest=base.digest,
            calibration=calibration,
            text_sha256=sample.text_sha256,
            token_ids_sha256=sample.token_ids_sha256,
            num_tokens=sum(len(window) for window in windows),
            num_samples=len(windows),
            decontamination=sample.decontamination,
            inputs=tuple(
                LinearStatistics(
                    key=key,
                    file=file_of(key),
                    in_features=entry.accumulator.in_features,
                    linears=tuple(entry.linears),
                )
                for key, entry in inputs.items()
            ),
            files=files,
            digest=tree_digest(files),
        )
        write_record(partial / layout.statistics_path.name, record)


def _keys_by_file(inputs: dict[str, MeasuredInput]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for key in inputs:
        files.setdefault(file_of(key), []).append(key)
    return files
