"""Make the opening of the report, which answers four questions.

They are: which variant to take for which use, what it lost, what it costs to serve, and whether it
may ship.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.core.formatting import significant
from pipeline.core.workspace import BASE
from pipeline.economics.cost_model import CostModel
from pipeline.gate.profiles import Figure, choose_after_benchmark
from pipeline.licensing.licenses import display_text, name_prefix
from pipeline.licensing.rule import LicenseRule
from pipeline.params.gate import Objective, ProfileParams
from pipeline.params.params import Audience, ReleaseParams
from pipeline.records.benchmarks import Benchmarks, served_models
from pipeline.records.licenses import Grant
from pipeline.records.selection import Selection, Verdict
from pipeline.report.costs import cost_rows
from pipeline.report.serving import users_text
from pipeline.report.verdicts import IntervalText, verdict_row


@dataclass(frozen=True)
class DecisionRow:
    """Say what one profile takes, and why. The other fields are empty where it takes nothing."""

    profile: str
    variant: str | None
    reason: str
    drop: IntervalText | None = None
    kl: IntervalText | None = None
    size: IntervalText | None = None
    usd_per_million: str = ""
    usd_per_month: str = ""


def measured_figures(
    benchmarks: Benchmarks | None, costs: CostModel | None
) -> dict[str, dict[Objective, Figure]]:
    """Return the figures of the benchmark that profiles choose by, for each served model.

    Throughput is the highest of all loads, in output tokens per second. Latency is the median time
    of a whole request at the load with the fewest users, in milliseconds. Cost is in US dollars
    per million tokens, and only there for models that are quick enough.
    """
    figures: dict[str, dict[Objective, Figure]] = {}
    for name, model in served_models(benchmarks).items() if benchmarks else ():
        if not model.loads:
            continue
        lightest = min(model.loads, key=lambda load: load.concurrency)
        throughput = max(load.output_tokens_per_s.median for load in model.loads)
        figures[name] = {
            Objective.THROUGHPUT: Figure.exact(throughput),
            Objective.LATENCY: Figure.exact(lightest.median_of(lambda one: one.e2el_ms.p50)),
        }
    for served in costs.served if costs else ():
        usd = served.tokens.usd_per_million_tokens
        figures[served.name][Objective.COST] = Figure.exact(usd)
    return figures


def decision_rows(
    selection: Selection,
    profiles: Mapping[str, ProfileParams],
    benchmarks: Benchmarks | None,
    costs: CostModel | None,
) -> tuple[DecisionRow, ...]:
    """Return one row for each profile. `costs` is None when nothing was measured."""
    choices = choose_after_benchmark(selection, measured_figures(benchmarks, costs), profiles)
    bills = {bill.model: bill for bill in cost_rows(costs)} if costs else {}
    rows = []
    for profile, choice in choices.items():
        if choice.variant is None:
            rows.append(DecisionRow(profile, None, choice.reason))
            continue
        row = verdict_row(choice.variant, selection.variants[choice.variant], reference=None)
        bill = bills.get(choice.variant)
        rows.append(
            DecisionRow(
                profile,
                choice.variant,
                choice.reason,
                drop=row.drop,
                kl=row.kl,
                size=row.size,
                usd_per_million=bill.usd_per_million if bill else "not measured",
                usd_per_month=f"{bill.usd_per_month} USD a month" if bill else "",
            )
        )
    return tuple(rows)


def base_advantages(
    decisions: Sequence[DecisionRow], benchmarks: Benchmarks | None, costs: CostModel | None
) -> tuple[str, ...]:
    """Say where the base is faster or costs less than a variant that a profile takes.

    The base is faster under a load when the 95 % interval of the throughput ratio, variant ÷ base,
    lies below 1. With too few rounds for an interval, the median has to be below 1.
    """
    usd = {cost.name: cost.tokens.usd_per_million_tokens for cost in costs.served} if costs else {}
    sentences = []
    for name, model in served_models(benchmarks).items():
        if name not in {decision.variant for decision in decisions}:
            continue
        slower = [
            f"{load.scenario}, {users_text(load.concurrency)}: {ratio.median:.2f}"
            for load in model.loads
            if (ratio := load.over_base) is not None
            and (ratio.median if ratio.high is None else ratio.high) < 1
        ]
        advantages = []
        if slower:
            advantages.append(
                "is faster under these loads (output tokens per second, variant ÷ base): "
                f"{'; '.join(slower)}"
            )
        if name in usd and BASE in usd and usd[BASE] < usd[name]:
            advantages.append(
                f"costs less to serve, {significant(usd[BASE])} instead of "
                f"{significant(usd[name])} USD per million tokens"
            )
        if advantages:
            sentences.append(
                f"Compared with {name}, the base on this machine {'. It '.join(advantages)}."
            )
    return tuple(sentences)


def outcome(selection: Selection) -> str:
    """Return the first sentence of the report."""
    approved, total = len(selection.approved()), len(selection.variants)
    if approved:
        return f"{approved} of {total} variants approved"
    return f"Nothing approved: none of {total} variants may be released"


def failure_reasons(selection: Selection) -> tuple[tuple[str, str, str], ...]:
    """Return name, verdict and reasons of each variant that was not approved."""
    return tuple(
        (name, verdict.verdict.value, "; ".join(verdict.reasons) or "no reason was recorded")
        for name, verdict in selection.variants.items()
        if verdict.verdict is not Verdict.APPROVED
    )


def next_steps(selection: Selection) -> tuple[str, ...]:
    """Return advice for each kind of verdict that kept variants from being approved."""
    verdicts = {verdict.verdict for verdict in selection.variants.values()}
    steps = []
    if Verdict.REJECTED in verdicts:
        steps.append(
            "Rejected variants lose too much. Give them more bits or a smaller group_size in "
            "params.yaml, or calibrate on text that is closer to the use."
        )
    if Verdict.INCONCLUSIVE in verdicts:
        steps.append(
            "Inconclusive variants need more evidence. Give the evaluation the further documents "
            "or tokens that the reasons ask for."
        )
    steps.append(
        "Then run make repro again: what did not change is not done again. Widen a margin or a "
        "bound only if your use can bear the loss."
    )
    return tuple(steps)


def shipping_rows(
    selection: Selection, release: ReleaseParams, rule: LicenseRule
) -> tuple[tuple[str, str], ...]:
    """Return what may be released, to whom, under which license, and what the license asks for."""
    internal = release.audience is Audience.INTERNAL
    purpose = "commercial" if release.commercial else "non-commercial"
    passed = bool(selection.approved())
    allowed = rule.grants is Grant.ANY or not release.commercial
    if not passed:
        answer = "No: no variant passed the gate."
    elif not allowed:
        answer = f"No: the license allows {rule.grants.value} purposes only."
    else:
        answer = "Yes, the approved variants, when the obligations below are met."
    reach = "inside your own organisation" if internal else "to others"
    grants = "any purpose" if rule.grants is Grant.ANY else f"{rule.grants.value} purposes only"
    obligations = ["Pass the LICENSE and NOTICE files on with every copy."]
    shown = display_text(rule, release.audience, name=release.name)
    if shown:
        obligations.append(f"Show this text wherever the model is offered: “{shown}”.")
    prefix = name_prefix(rule, release.audience)
    if prefix:
        obligations.append(f"Begin the name of the release with “{prefix}”.")
    if rule.use_policy_url:
        policy = rule.use_policy_url.partition("://")[2]
        obligations.append(f"Keep to the use policy: {policy}.")
    obligations += rule.conditions
    return (
        ("May it ship?", answer),
        ("License", f"{rule.name}, which allows {grants}"),
        ("Audience", f"{release.audience.value}: {reach}, for {purpose} use"),
        ("Obligations", " ".join(obligations)),
    )
