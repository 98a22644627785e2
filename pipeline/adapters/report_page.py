"""The report as one HTML file: the tables of `pipeline.domain.report`, two charts, one style sheet.

The page fetches nothing and runs nothing; its content security policy says so to the browser.
"""

from markupsafe import Markup

from pipeline.adapters.svg_charts import Line, Point, lines, scatter
from pipeline.adapters.templates import read_asset, render_html
from pipeline.domain.figures import unit_of
from pipeline.domain.layout import BASE
from pipeline.domain.model_card import base_reference
from pipeline.domain.report import (
    Facts,
    calibration_sentence,
    coverage_rows,
    latency_rows,
    load_sentence,
    provenance_rows,
    pull_commands,
    served_models,
    serving_remarks,
    task_rows,
    verdict_rows,
)
from pipeline.domain.report_controls import control_rows
from pipeline.domain.report_verdicts import choices, gate_sentences, task_verdict_rows

TEMPLATE = "report.html.j2"
STYLE = "report.css"


def render_report(facts: Facts) -> str:
    """The whole page. The same records give the same bytes."""
    release = facts.params.release
    return render_html(
        TEMPLATE,
        style=Markup(read_asset(STYLE)),
        title=f"{release.name} {release.version}",
        base=base_reference(facts.base),
        architecture=facts.base.architecture,
        license=facts.base.applied_license.name,
        num_approved=len(facts.selection.approved()),
        num_variants=len(facts.selection.variants),
        gate=gate_sentences(facts.params.gate),
        calibration=calibration_sentence(facts),
        verdicts=verdict_rows(facts),
        task_verdicts={
            name: task_verdict_rows(it) for name, it in facts.selection.variants.items()
        },
        choices=choices(facts.selection, facts.benchmarks, facts.params.gate.profiles),
        scatter=size_chart(facts),
        throughput=throughput_chart(facts),
        latencies=latency_rows(facts),
        load=load_sentence(facts.benchmarks) if facts.benchmarks else "",
        served=serving_remarks(facts),
        models=(BASE, *facts.evaluations),
        tasks=task_rows(facts),
        reference=facts.base_evaluation.backend,
        controls=control_rows(facts.base_evaluation),
        coverage=coverage_rows(facts),
        pulls=pull_commands(facts),
        provenance=provenance_rows(facts),
    )


def size_chart(facts: Facts) -> Markup | None:
    """Size against KL divergence; None when no variant diverges at all."""
    unit, unit_bytes = unit_of(max(it.weight_bytes for it in facts.selection.variants.values()))
    points = []
    for name, verdict in facts.selection.variants.items():
        if verdict.distance is not None:
            points.append(
                Point(
                    label=name,
                    x=verdict.weight_bytes / unit_bytes,
                    y=verdict.distance.kl,
                    y_low=verdict.distance.kl_low,
                    y_high=verdict.distance.kl_high,
                    kind=verdict.verdict.value,
                )
            )
    if not any(point.y > 0 for point in points):
        return None
    return scatter(
        points,
        title="Size of each variant against its KL divergence to the base",
        x_label=f"size of the weights, {unit}",
        y_label="KL divergence, nats per token (logarithmic)",
    )


def throughput_chart(facts: Facts) -> Markup | None:
    """Output tokens per second of each model by users; None when nothing was measured."""
    served = {name: model for name, model in served_models(facts).items() if model.loads}
    if not served:
        return None
    users = sorted({load.concurrency for model in served.values() for load in model.loads})
    series = [
        Line(
            label=name,
            values=tuple(
                (users.index(load.concurrency), load.output_tokens_per_s) for load in model.loads
            ),
        )
        for name, model in served.items()
    ]
    return lines(
        series,
        [str(count) for count in users],
        title="Output tokens per second of each served model by concurrent users",
        x_label="users at the same time",
        y_label="output tokens per second",
    )
