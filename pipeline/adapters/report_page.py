"""The report as one HTML file: the tables of `pipeline.domain.report`, two charts, one style sheet.

The page fetches nothing and runs nothing; its content security policy says so to the browser.
"""

from markupsafe import Markup

from pipeline.adapters.svg_charts import Line, Point, lines, scatter
from pipeline.adapters.templates import read_asset, render_html
from pipeline.domain.figures import unit_of
from pipeline.domain.model_card import base_reference
from pipeline.domain.report import (
    Facts,
    ServedModel,
    coverage_rows,
    gate_sentence,
    latency_rows,
    load_sentence,
    provenance_rows,
    pull_commands,
    task_rows,
    verdict_rows,
)

TEMPLATE = "report.html.j2"
STYLE = "report.css"


def render_report(facts: Facts, served: tuple[ServedModel, ...]) -> str:
    """The whole page. The same records give the same bytes."""
    release = facts.params.release
    return render_html(
        TEMPLATE,
        style=Markup(read_asset(STYLE)),
        title=f"{release.name} {release.version}",
        base=base_reference(facts.base),
        architecture=facts.base.architecture,
        license=facts.rule.name,
        num_approved=len(facts.selection.approved()),
        num_variants=len(facts.selection.variants),
        gate=gate_sentence(facts.params.gate),
        verdicts=verdict_rows(facts),
        scatter=size_chart(facts),
        throughput=throughput_chart(served),
        latencies=latency_rows(served),
        load=load_sentence(facts.params.serve),
        served={model.name: model.remark for model in served},
        models=("base", *facts.evaluations),
        tasks=task_rows(facts),
        coverage=coverage_rows(facts),
        pulls=pull_commands(facts),
        provenance=provenance_rows(facts),
    )


def size_chart(facts: Facts) -> Markup | None:
    """Size against KL divergence; None when no variant diverges at all."""
    unit, unit_bytes = unit_of(max(it.weight_bytes for it in facts.selection.variants.values()))
    points = []
    for name, verdict in facts.selection.variants.items():
        distance = facts.evaluations[name].distance
        points.append(
            Point(
                label=name,
                x=verdict.weight_bytes / unit_bytes,
                y=verdict.kl,
                y_low=distance.kl_low if distance else verdict.kl,
                y_high=distance.kl_high if distance else verdict.kl,
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


def throughput_chart(served: tuple[ServedModel, ...]) -> Markup | None:
    """Output tokens per second of each model by users; None when nothing was measured."""
    users = sorted({load.users for model in served for load in model.loads})
    series = [
        Line(
            label=model.name,
            values=tuple(
                (users.index(load.users), load.output_tokens_per_s) for load in model.loads
            ),
        )
        for model in served
        if model.loads
    ]
    if not series:
        return None
    return lines(
        series,
        [str(count) for count in users],
        title="Output tokens per second of each served model by concurrent users",
        x_label="users at the same time",
        y_label="output tokens per second",
    )
