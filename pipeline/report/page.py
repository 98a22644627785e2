"""Render the report as one HTML file with tables, charts and one style sheet.

The page fetches nothing and runs nothing. Its content security policy tells the browser so.
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
from pipeline.report.bits import bits_sections
from pipeline.report.costs import break_even_rows, cost_lines, cost_rows, cost_sentence
from pipeline.report.decision import (
    base_advantages,
    decision_rows,
    failure_reasons,
    next_steps,
    outcome,
    shipping_rows,
)
from pipeline.report.facts import (
    Facts,
    calibration_sentence,
    coverage_rows,
    engine_sentence,
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
from pipeline.report.svg_charts import Line, Point, lines, size_and_divergence
from pipeline.report.verdicts import control_rows, gate_sentences, task_verdict_rows

TEMPLATE = "report/report.html.j2"
STYLE = "report/report.css"


def render_report(facts: Facts) -> str:
    """Return the whole page. The same records give the same bytes."""
    release = facts.params.release
    selection = facts.selection
    costs = _cost_model(facts)
    decisions = decision_rows(selection, facts.params.gate.profiles, facts.benchmarks, costs)
    return render_html(
        TEMPLATE,
        style=Markup(read_asset(STYLE)),
        title=f"{release.name} {release.version}",
        base=base_reference(facts.base),
        architecture=facts.base.architecture,
        approved=bool(selection.approved()),
        outcome=outcome(selection),
        failures=failure_reasons(selection),
        next_steps=next_steps(selection),
        decisions=decisions,
        base_advantages=base_advantages(decisions, facts.benchmarks, costs),
        shipping=shipping_rows(selection, release, facts.license_rule),
        gate=gate_sentences(facts.params.gate),
        findings=facts.intake.findings,
        calibration=calibration_sentence(facts),
        verdicts=verdict_rows(facts),
        task_verdicts={
            name: task_verdict_rows(verdict) for name, verdict in selection.variants.items()
        },
        scatter=size_chart(facts),
        served=serving_remarks(facts.benchmarks),
        serving=_serving(facts.benchmarks),
        costs=_costs(costs),
        models=(BASE, *facts.evaluations),
        tasks=task_rows(facts),
        engines=engine_sentence(facts),
        reference=facts.base_evaluation.backend,
        controls=control_rows(facts.base_evaluation),
        coverage=coverage_rows(facts),
        bits=bits_sections(facts.variants),
        pulls=pull_commands(facts),
        provenance=provenance_rows(facts),
    )


def size_chart(facts: Facts) -> Markup | None:
    """Draw size and KL divergence of each variant. Returns None when no variant diverges at all."""
    unit, unit_bytes = unit_of(
        max(verdict.weight_bytes for verdict in facts.selection.variants.values())
    )
    points = []
    for name, verdict in facts.selection.variants.items():
        if verdict.distance is not None:
            points.append(
                Point(
                    label=name,
                    size=verdict.weight_bytes / unit_bytes,
                    kl=verdict.distance.kl,
                    kl_low=verdict.distance.kl_low,
                    kl_high=verdict.distance.kl_high,
                    verdict=verdict.verdict.value,
                )
            )
    if not any(point.kl > 0 for point in points):
        return None
    return size_and_divergence(
        points, title="Size of each variant and its KL divergence from the base", unit=unit
    )


def _serving(benchmarks: Benchmarks | None) -> dict[str, object] | None:
    """Return the tables and charts of the benchmark, or None when it measured nothing."""
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
            title="Output tokens per second of each model by users; figures are in the table",
            y_label="output tokens per second",
        ),
        "latency": load_chart(
            benchmarks,
            lambda load: estimate([one.e2el_ms.p95 for one in load.rounds]),
            title="Time of a request to each model by users; figures are in the table",
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
    """Draw a figure of each model by users, with its intervals, in the first scenario."""
    name = next(iter(benchmarks.load.scenarios))
    series = []
    for model_name, model in served_models(benchmarks).items():
        points = [(load.concurrency, figure(load)) for load in model.loads if load.scenario == name]
        series.append(
            Line(
                label=model_name,
                points=tuple((users, value.median) for users, value in points),
                intervals=tuple(
                    (users, value.low, value.high)
                    for users, value in points
                    if value.low is not None and value.high is not None
                ),
            )
        )
    return lines(
        series,
        title=title,
        x_label="users at the same time",
        y_label=y_label,
    )


def _cost_model(facts: Facts) -> CostModel | None:
    """Return the costs, or None when nothing was measured."""
    if facts.benchmarks is None or not served_models(facts.benchmarks):
        return None
    schemes = {name: variant.recipe.format for name, variant in facts.variants.items()}
    return cost_model(facts.benchmarks, facts.params.economics, facts.prices, schemes)


def _costs(model: CostModel | None) -> dict[str, object] | None:
    """Return the tables and the chart of costs, or None when nothing was measured."""
    if model is None:
        return None
    return {
        "sentence": cost_sentence(model),
        "rows": cost_rows(model),
        "lines": cost_lines(model),
        "break_even": break_even_rows(model),
        "chart": cost_chart(model),
    }


def cost_chart(model: CostModel) -> Markup | None:
    """Draw the bill by volume with the break-even points.

    Returns None when no model is quick enough.
    """
    curves = cost_curves(model)
    if not curves:
        return None
    return lines(
        [Line(curve.label, curve.points, marks=curve.marks) for curve in curves],
        title="Cost of a month by tokens a day; the tables have the break-even points",
        x_label="tokens a day",
        y_label="US dollars a month",
        logarithmic=True,
    )
