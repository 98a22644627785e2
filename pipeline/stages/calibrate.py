"""Calibrate: measure the second moments of every linear input in one pass over calibration text.

Most recipes need no more of the data than these statistics. The stage also keeps the token ids that
it read, for recipes that run the model again (quantized inputs, alignment). It quantizes nothing.
"""

import torch

from pipeline.architectures.folds import require_folds
from pipeline.calibration.layers import calibrate_layers
from pipeline.calibration.sample import calibration_sample, write_token_ids
from pipeline.checkpoint.tokenizer import tokenizer_of
from pipeline.core.file_records import tree_digest
from pipeline.core.files import (
    directory_records,
    resumable_directory,
    work_key,
    write_record,
)
from pipeline.core.progress import note
from pipeline.core.workspace import Workspace
from pipeline.params.params import Params
from pipeline.planning.capacity import fetched_source, require_room
from pipeline.planning.stage_needs import calibrate_need
from pipeline.records.base import read_base_manifest
from pipeline.records.statistics import StatisticsRecord


def run(workspace: Workspace, params: Params) -> None:
    """Write `artifacts/statistics`.

    Raises InputError for unusable data, too little memory or disk, and for a recipe with
    `scale_search` when the folding of the architecture is unknown.
    """
    calibration = params.calibration
    base = read_base_manifest(workspace)
    require_folds(base.text_architecture, params.variants.values())
    require_room(workspace, calibrate_need(fetched_source(workspace), params))
    sample = calibration_sample(workspace, params, tokenizer_of(workspace.base_dir))
    windows = sample.windows
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    note(f"calibrate: {len(windows)} samples of {calibration.max_seq_length} tokens on {device}")
    key = work_key(
        base.digest,
        calibration.model_dump_json(),
        sample.token_ids_sha256,
        f"{device.type} {torch.get_num_threads()} threads",
    )
    with resumable_directory(workspace.statistics_dir, key=key) as work_dir:
        layers = calibrate_layers(workspace.base_dir, windows, device, work_dir)
        write_token_ids(work_dir / workspace.token_ids_path.name, windows)
        files = tuple(
            file
            for file in directory_records(work_dir)
            if file.path != workspace.statistics_path.name  # it exists after a kill at the end
        )
        record = StatisticsRecord(
            base_digest=base.digest,
            calibration=calibration,
            text_sha256=sample.text_sha256,
            token_ids_sha256=sample.token_ids_sha256,
            num_tokens=sum(len(window) for window in windows),
            num_samples=len(windows),
            decontamination=sample.decontamination,
            skipped=sample.skipped,
            template_date=sample.template_date,
            inputs=tuple(entry for layer in layers for entry in layer.inputs),
            experts=tuple(expert for layer in layers for expert in layer.experts),
            files=files,
            digest=tree_digest(files),
        )
        write_record(work_dir / workspace.statistics_path.name, record)
    undersampled = [expert for expert in record.experts if expert.pooled]
    if undersampled:
        note(
            f"calibrate: {len(undersampled)} of {len(record.experts)} experts saw too few tokens "
            "for statistics of their own and use those of all experts of their layer"
        )
