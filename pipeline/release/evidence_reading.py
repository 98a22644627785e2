"""Read the records of an approved variant, and check that they belong together."""

from pathlib import Path
from typing import TypeVar

from pipeline.checkpoint.checks import read_config
from pipeline.checkpoint.names import CARD_FILE
from pipeline.core.errors import InputError
from pipeline.core.files import read_bytes
from pipeline.core.record import Record, sha256_hex
from pipeline.core.workspace import BASE, Workspace
from pipeline.licensing.licenses import data_rule
from pipeline.licensing.rules import license_rules
from pipeline.params.params import Params
from pipeline.records.base import BaseManifest, DatasetManifest
from pipeline.records.benchmarks import Benchmarks
from pipeline.records.evaluation import EvaluationRecord
from pipeline.records.intake import Intake
from pipeline.records.scored import control_in
from pipeline.records.selection import Selection
from pipeline.records.statistics import StatisticsRecord
from pipeline.records.variant import VariantRecord
from pipeline.release.evidence import Evidence, RecordFile
from pipeline.release.model_card import read_languages

AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_evidence(
    workspace: Workspace, params: Params, name: str, *, context_tokens: int
) -> Evidence:
    """Return the records of variant `name`; `context_tokens` is the base's longest context.

    Raises InputError when a record is missing or is not of the approved files.
    """
    reader = _Reader(workspace)
    base = reader.read(BaseManifest, workspace.base_manifest_path, stage="fetch")
    intake = reader.read(Intake, workspace.intake_path, stage="fetch")
    data = reader.read(DatasetManifest, workspace.dataset_manifest_path, stage="fetch")
    statistics = reader.read(StatisticsRecord, workspace.statistics_path, stage="calibrate")
    variant = reader.read(VariantRecord, workspace.variant_path(name), stage="quantize")
    base_evaluation = reader.read(
        EvaluationRecord, workspace.evaluation_path(BASE), stage="evaluate"
    )
    evaluation = reader.read(EvaluationRecord, workspace.evaluation_path(name), stage="evaluate")
    selection = reader.read(Selection, workspace.selection_path, stage="select")
    benchmarks = reader.read(Benchmarks, workspace.benchmarks_path, stage="benchmark")
    control = control_in(workspace, base_evaluation, evaluation.engine, name=name)
    if data.license.stated != statistics.calibration.license:
        raise InputError(
            f"{workspace.statistics_path}: of data under another license "
            f"({statistics.calibration.license}); run `quantline calibrate` again"
        )
    path = workspace.variant_path(name)
    if variant.base_digest != base.digest:
        raise InputError(f"{path}: made from another base; run `quantline quantize {name}` again")
    if {evaluation.artifact_digest, selection.variants[name].artifact_digest} != {variant.digest}:
        raise InputError(
            f"{path}: not the files that were evaluated and approved; run `dvc repro` again"
        )
    served = benchmarks.models.get(name)
    if served is None or served.artifact_digest != variant.digest:
        raise InputError(
            f"{workspace.benchmarks_path}: measures other files than the approved {name}; run "
            "`quantline benchmark` again"
        )
    rules = license_rules()
    return Evidence(
        params=params,
        base=base,
        intake=intake,
        rule=rules.applying(base.applied_license),
        calibration_rule=data_rule(data.license, rules),
        statistics=statistics,
        variant=variant,
        base_perplexity=(control or base_evaluation).perplexity,
        evaluation=evaluation,
        selection=selection,
        benchmarks=benchmarks,
        languages=read_languages(workspace.base_dir / CARD_FILE),
        model_type=read_config(workspace.base_dir).model_type,
        context_tokens=context_tokens,
        files=tuple(reader.files),
    )


class _Reader:
    """Read records and collect the digests of their files."""

    def __init__(self, workspace: Workspace) -> None:
        self._artifacts_dir = workspace.artifacts_dir
        self.files: list[RecordFile] = []

    def read(self, record: type[AnyRecord], path: Path, *, stage: str) -> AnyRecord:
        """Read one record of `stage`. Raises InputError when it is missing or damaged."""
        data = read_bytes(path, made_by=stage)
        name = path.relative_to(self._artifacts_dir).as_posix()
        self.files.append(RecordFile(stage, name, sha256_hex(data)))
        return record.from_bytes(data, source=str(path), made_by=stage)
