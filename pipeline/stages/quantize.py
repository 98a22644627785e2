"""Quantize: make one variant from the base's weights, the statistics and its recipe.

Equal inputs give equal bytes. The coverage in `variant.json` lists every tensor of the result. The
stage does not judge the variant; evaluate and select do.
"""

from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import torch

from pipeline.calibration.statistics import Statistics
from pipeline.core.errors import InputError
from pipeline.core.file_records import tree_digest
from pipeline.core.files import (
    directory_records,
    new_directory,
    resumable_directory,
    work_key,
    write_record,
)
from pipeline.core.progress import note
from pipeline.core.workspace import Workspace
from pipeline.gguf import files as gguf
from pipeline.licensing.licenses import gguf_metadata
from pipeline.params.other_quantizers import BackendWeights
from pipeline.params.params import GgufParams, Params, VariantParams
from pipeline.params.reading import require_runnable
from pipeline.planning.capacity import fetched_source, require_room
from pipeline.planning.quantize_need import quantize_need
from pipeline.quantization.gguf_variant import write_gguf
from pipeline.quantization.packed_checkpoint import write_packed
from pipeline.records.base import read_base_manifest
from pipeline.records.variant import VariantRecord, bits_per_weight


def run(workspace: Workspace, params: Params, name: str) -> None:
    """Write `artifacts/variants/<name>`.

    Raises InputError for a name that params.yaml does not have, for statistics of another base, for
    too little memory or disk, and for a recipe that does not fit the model; FailureError when a
    quantizer fails or leaves a linear unquantized.
    """
    recipe = params.variants.get(name)
    if recipe is None:
        raise InputError(f"{name}: not in params.yaml; variants: {', '.join(params.variants)}")
    require_runnable({name: recipe})
    base = read_base_manifest(workspace)
    statistics = Statistics(workspace)
    if statistics.record.base_digest != base.digest:
        raise InputError(
            f"{workspace.statistics_path}: measured on another base; run `quantline calibrate` "
            "again"
        )
    require_room(workspace, quantize_need(fetched_source(workspace), params, name))
    with _work_directory(workspace, name, recipe, statistics) as work_dir:
        model_dir = work_dir / "model"
        model_dir.mkdir(exist_ok=True)
        allocation = None
        if isinstance(recipe, GgufParams):
            coverage, allocation = write_gguf(
                workspace.base_dir,
                base,
                recipe,
                statistics,
                model_dir,
                model_name=params.release.name,
                metadata=gguf_metadata(base.applied_license, params.release.quantized_by),
                pre_tokenizer=params.model.gguf_pre_tokenizer,
            )
            tools = gguf.tool_versions()
        elif isinstance(recipe, BackendWeights):
            # Imported only where it is needed: it loads the tasks of lm-eval, which takes seconds.
            from pipeline.quantization.other_quantizers import write_with_backend

            variant = write_with_backend(workspace, params, base, recipe, statistics, model_dir)
            coverage, tools = variant.coverage, variant.versions
        else:
            coverage, allocation = write_packed(
                workspace.base_dir, base, recipe, statistics, model_dir
            )
            tools = {name: version(name) for name in ("quantline", "torch")}
        files = directory_records(model_dir)
        record = VariantRecord(
            name=name,
            recipe=recipe,
            base_digest=base.digest,
            statistics_digest=statistics.record.digest,
            tools=tools,
            files=files,
            digest=tree_digest(files),
            bits_per_weight=bits_per_weight(coverage),
            coverage=coverage,
            allocation=allocation,
        )
        write_record(work_dir / workspace.variant_path(name).name, record)
    note(f"quantize: {name}: {record.bits_per_weight:.2f} bits per weight")


def _work_directory(
    workspace: Workspace, name: str, recipe: VariantParams, statistics: Statistics
) -> AbstractContextManager[Path]:
    """Open the work directory of a variant; it is kept when the process is killed.

    GGUF files and those of other quantizers cannot be continued, and start in a new directory.
    """
    target = workspace.variant_dir(name)
    if isinstance(recipe, GgufParams | BackendWeights):
        return new_directory(target)
    record = statistics.record
    threads = f"{torch.get_num_threads()} threads"
    key = work_key(record.base_digest, record.digest, recipe.model_dump_json(), threads)
    return resumable_directory(target, key=key)
