"""Report: write one HTML page with the verdicts, their evidence and how to get the releases.

The page is written whatever the outcome. When nothing was approved, the stage raises its own error
afterwards, and the page explains why.
"""

from pipeline.core.errors import NothingApprovedError
from pipeline.core.files import read_record, write_bytes
from pipeline.core.progress import note
from pipeline.core.workspace import BASE, Workspace
from pipeline.licensing.rules import license_rules
from pipeline.params.params import Params
from pipeline.params.reading import read_prices
from pipeline.records.base import DatasetManifest, read_base_manifest
from pipeline.records.benchmarks import Benchmarks
from pipeline.records.evaluation import EvaluationRecord
from pipeline.records.intake import read_intake
from pipeline.records.release import Receipts
from pipeline.records.selection import Selection
from pipeline.records.statistics import StatisticsRecord
from pipeline.records.variant import VariantRecord
from pipeline.report.facts import Facts
from pipeline.report.page import render_report


def run(workspace: Workspace, params: Params) -> None:
    """Write report/index.html. Raises NothingApprovedError, after that, when nothing passed."""
    facts = _facts(workspace, params)
    page = render_report(facts)
    write_bytes(workspace.report_path, page.encode())
    shown = workspace.report_path.relative_to(workspace.root)
    note(f"report: {shown}")
    if not facts.selection.approved():
        raise NothingApprovedError(
            f"none of {len(facts.selection.variants)} variants passed the gate; {shown} says why"
        )


def _facts(workspace: Workspace, params: Params) -> Facts:
    selection = read_record(Selection, workspace.selection_path, made_by="select")
    base = read_base_manifest(workspace)
    return Facts(
        params=params,
        base=base,
        intake=read_intake(workspace),
        license_rule=license_rules().applying(base.applied_license),
        data_license=read_record(
            DatasetManifest, workspace.dataset_manifest_path, made_by="fetch"
        ).license,
        statistics=read_record(StatisticsRecord, workspace.statistics_path, made_by="calibrate"),
        selection=selection,
        base_evaluation=_evaluation(workspace, BASE),
        evaluations={name: _evaluation(workspace, name) for name in selection.variants},
        variants={
            name: read_record(
                VariantRecord, workspace.variant_path(name), made_by=f"quantize {name}"
            )
            for name in selection.variants
        },
        prices=read_prices(workspace.root / params.economics.prices),
        benchmarks=(
            read_record(Benchmarks, workspace.benchmarks_path, made_by="benchmark")
            if workspace.benchmarks_path.exists()
            else None
        ),
        receipts=(
            read_record(Receipts, workspace.receipts_path, made_by="publish")
            if workspace.receipts_path.exists()
            else None
        ),
    )


def _evaluation(workspace: Workspace, name: str) -> EvaluationRecord:
    return read_record(
        EvaluationRecord, workspace.evaluation_path(name), made_by=f"evaluate {name}"
    )
