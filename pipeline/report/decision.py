"""Answer the four questions that a report is opened for.

Which variant to take for which use, what it lost, what it costs to serve, whether it may ship.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.economics.cost_model import CostModel
from pipeline.licensing.licenses import display_text, name_prefix
from pipeline.licensing.rule import Grant, LicenseRule
from pipeline.params.params import Audience, ReleaseParams
from pipeline.records.selection import Choice, Selection, Verdict
from pipeline.report.costs import cost_rows
from pipeline.report.verdicts import IntervalText, verdict_row


@dataclass(frozen=True)
class DecisionRow:
    """Say what one profile takes; every field but the first two is empty where nothing is taken."""

    profile: str
    variant: str | None
    reason: str
    drop: IntervalText | None = None
    kl: IntervalText | None = None
    size: IntervalText | None = None
    usd_per_million: str = ""
    usd_per_month: str = ""


def decision_rows(
    selection: Selection, choices: Mapping[str, Choice], costs: CostModel | None
) -> tuple[DecisionRow, ...]:
    """Return one row for each profile. `costs` is None when nothing was measured."""
    bills = {it.model: it for it in cost_rows(costs)} if costs else {}
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
                usd_per_month=f"{bill.usd_per_month} a month" if bill else "",
            )
        )
    return tuple(rows)


def outcome(selection: Selection) -> str:
    """Return the first sentence of the report."""
    approved, total = len(selection.approved()), len(selection.variants)
    if approved:
        return f"{approved} of {total} variants approved"
    return f"Nothing approved: none of {total} variants may be released"


def failure_reasons(selection: Selection) -> tuple[tuple[str, str, str], ...]:
    """Return name, verdict and reasons of each variant that was not approved."""
    return tuple(
        (name, it.verdict.value, "; ".join(it.reasons) or "no reason was recorded")
        for name, it in selection.variants.items()
        if it.verdict is not Verdict.APPROVED
    )


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
