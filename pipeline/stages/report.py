"""report: one HTML page with the verdicts, the evidence for them and how to get the releases.

It is written whatever the outcome; when nothing was approved the stage says so with its own exit
code after that, so that the page is there to explain why.
"""

from pipeline.core.errors import NothingApprovedError
from pipeline.core.files import read_record, write_bytes
from pipeline.core.progress import note
from pipeline.core.workspace import BASE, Layout
from pipeline.params.params import Params
from pipeline.params.reading import read_prices
from pipeline.records.base import read_base_manifest
from pipeline.records.benchmarks import Benchmarks
from pipeline.records.evaluation import EvaluationRecord
from pipeline.records.release import Receipts
from pipeline.records.selection import Selection
from pipeline.records.statistics import StatisticsRecord
from pipeline.records.variant import VariantRecord
from pipeline.report.facts import Facts
from pipeline.report.page import render_report


def run(layout: Layout, params: Params) -> None:
    """Write report/index.html. Raises NothingApprovedError, after that, when nothing passed."""
    facts = _facts(layout, params)
    page = render_report(facts)
    write_bytes(layout.report_path, page.encode())
    shown = layout.report_path.relative_to(layout.root)
    note(f"report: {shown}")
    if not facts.selection.approved():
        raise NothingApprovedError(
            f"none of {len(facts.selection.variants)} variants passed the gate; {shown} says why"
        )


def _facts(layout: Layout, params: Params) -> Facts:
    selection = read_record(Selection, layout.selection_path, made_by="select")
    base = read_base_manifest(layout)
    return Facts(
        params=params,
        base=base,
        statistics=read_record(StatisticsRecord, layout.statistics_path, made_by="calibrate"),
        selection=selection,
        base_evaluation=_evaluation(layout, BASE),
        evaluations={name: _evaluation(layout, name) for name in selection.variants},
        variants={
            name: read_record(VariantRecord, layout.variant_path(name), made_by=f"quantize {name}")
            for name in selection.variants
        },
        prices=read_prices(layout.root / params.economics.prices),
        benchmarks=(
            read_record(Benchmarks, layout.benchmarks_path, made_by="benchmark")
            if layout.benchmarks_path.exists()
            else None
        ),
        receipts=(
            read_record(Receipts, layout.receipts_path, made_by="publish")
            if layout.receipts_path.exists()
            else None
        ),
    )


def _evaluation(layout: Layout, name: str) -> EvaluationRecord:
    return read_record(EvaluationRecord, layout.evaluation_path(name), made_by=f"evaluate {name}")
