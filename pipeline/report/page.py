"""The report as one HTML file: the tables of `pipeline.report.facts`, charts, one style sheet.

The page fetches nothing and runs nothing; its content security policy says so to the browser.
"""

from collections.abc import Callable

from markupsafe import Markup

from pipeline.core.formatting import unit_of
from pipeline.core.rendering import read_asset, render_html
from pipeline.core.workspace import BASE
from pipeline.economics.cost_model import CostModel, cost_curves, cost_model
from pipeline.records.benchmarks import Benchmarks, LoadResult, served_models
from pipeline.records.rounds import Estimate, estimate
from pipeline.records.wording import base_reference
from pipeline.report import svg_charts as svg_curves
from pipeline.report.costs import break_even_rows, cost_lines, cost_rows, cost_sentence
from pipeline.report.facts import (
    Facts,
    calibration_sentence,
    coverage_rows,
    provenance_rows,
    pull_commands,
    task_rows,
    verdict_rows,
)
from pipeline.report.serving import (
    crossovers,
    load_rows,
    load_sentence,
    memory_rows,
    serving_remarks,
)
from pipeline.report.svg_charts import Line, Point, lines, scatter
from pipeline.report.verdicts import choices, control_rows, gate_sentences, task_verdict_rows

TEMPLATE = "report/report.html.j2"
STYLE = "report/report.css"


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
        served=serving_remarks(facts.benchmarks),
        serving=_serving(facts.benchmarks),
        costs=_costs(facts),
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


def _serving(benchmarks: Benchmarks | None) -> dict[str, object] | None:
    """The tables and charts of what was measured; None when nothing was."""
    if benchmarks is None or not served_models(benchmarks):
        return None
    return {
        "complete": benchmarks.complete,
        "sentence": load_sentence(benchmarks),
        "rows": load_rows(benchmarks),
        "crossovers": crossovers(benchmarks),
        "memory": memory_rows(benchmarks),
        "throughput": load_chart(
            benchmarks,
            lambda load: load.output_tokens_per_s,
            title="Output tokens per second of each served model by concurrent users",
            y_label="output tokens per second",
        ),
        "latency": load_chart(
            benchmarks,
            lambda load: estimate([it.e2el_ms.p95 for it in load.rounds]),
            title="Time of a request of each served model by concurrent users",
            y_label="95 % of requests take less, ms",
        ),
    }


def load_chart(
    benchmarks: Benchmarks,
    figure: Callable[[LoadResult], Estimate],
    *,
    title: str,
    y_label: str,
) -> Markup:
    """A figure of each model by users, with its intervals, in the first scenario."""
    name, scenario = next(iter(benchmarks.load.scenarios.items()))
    users = list(scenario.concurrency)
    series = []
    for model_name, model in served_models(benchmarks).items():
        points = [
            (users.index(load.concurrency), figure(load))
            for load in model.loads
            if load.scenario == name
        ]
        series.append(
            Line(
                label=model_name,
                values=tuple((index, it.median) for index, it in points),
                intervals=tuple(
                    (index, it.low, it.high)
                    for index, it in points
                    if it.low is not None and it.high is not None
                ),
            )
        )
    return lines(
        series,
        [str(count) for count in users],
        title=title,
        x_label="users at the same time",
        y_label=y_label,
    )


def _costs(facts: Facts) -> dict[str, object] | None:
    """The tables and the chart of costs; None when nothing was measured."""
    if facts.benchmarks is None or not served_models(facts.benchmarks):
        return None
    schemes = {name: it.recipe.format for name, it in facts.variants.items()}
    model = cost_model(facts.benchmarks, facts.params.economics, facts.prices, schemes)
    return {
        "sentence": cost_sentence(model),
        "rows": cost_rows(model),
        "lines": cost_lines(model),
        "break_even": break_even_rows(model),
        "chart": cost_chart(model),
    }


def cost_chart(model: CostModel) -> Markup | None:
    """The bill by volume, with the break-even points; None when no model is quick enough."""
    found = cost_curves(model)
    if not found:
        return None
    return svg_curves.curves(
        [svg_curves.Curve(it.label, it.points, it.marks) for it in found],
        title="Cost of a month by tokens a day",
        x_label="tokens a day",
        y_label="US dollars a month",
    )
