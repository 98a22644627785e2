"""Write the gate's verdicts as sentences: the measurement, its bound, and what would decide.

Every sentence has as many digits as it takes to tell a number from its threshold.
"""

from collections.abc import Mapping

from pipeline.gate.drops import MEAN
from pipeline.records.selection import BoundVerdict, DropVerdict, Verdict

SHOWN_DIGITS = 3
MOST_DIGITS = 17
"""Enough to tell any two float64 numbers apart."""
NEGLIGIBLE = 1e-12
"""As a share of the threshold: the rounding error of a sum that is zero."""


def reasons_for(
    verdict: Verdict, drops: Mapping[str, DropVerdict], bounds: Mapping[str, BoundVerdict]
) -> tuple[str, ...]:
    """Return the reasons of a verdict.

    The failures of a rejection, the open questions of an inconclusive one, and for an approval the
    task nearest to its margin, the mean and the bounds.
    """
    told_drops = {name: drop for name, drop in drops.items() if drop.verdict is verdict}
    told_bounds = {name: bound for name, bound in bounds.items() if bound.verdict is verdict}
    if verdict is Verdict.APPROVED:
        tasks = [name for name in drops if name != MEAN]
        nearest = max(tasks, key=lambda name: drops[name].high / drops[name].margin)
        told_drops = {name: drops[name] for name in (nearest, MEAN) if name in drops}
    return (
        *(drop_sentence(name, drop) for name, drop in told_drops.items()),
        *(bound_sentence(name, bound) for name, bound in told_bounds.items()),
    )


def drop_sentence(name: str, it: DropVerdict) -> str:
    """Write one drop: its bound against its margin, or what would decide."""
    margin, confidence = f"{it.margin:.6g}", f"{100 * (1 - it.level):.4g} %"
    drop = told_apart(it.drop, it.margin)
    match it.verdict:
        case Verdict.APPROVED:
            high = told_apart(it.high, it.margin)
            return (
                f"{name}: drop {drop}, at most {high} with {confidence} confidence, within {margin}"
            )
        case Verdict.REJECTED:
            low = told_apart(it.low, it.margin)
            return (
                f"{name}: drop {drop}, at least {low} with {confidence} confidence, above {margin}"
            )
    low, high = told_apart(it.low, it.margin), told_apart(it.high, it.margin)
    return f"{name}: drop {drop}, between {low} and {high}, margin {margin}: {_further(it)}"


def _further(it: DropVerdict) -> str:
    if it.further_documents is None:
        return "no number of documents would decide what equals its margin"
    return f"not decided, run {it.further_documents:,} more documents"


def bound_sentence(name: str, it: BoundVerdict) -> str:
    """Write KL or perplexity ratio: the end of its interval that decides, against its limit."""
    value, limit = told_apart(it.value, it.limit), f"{it.limit:.6g}"
    match it.verdict:
        case Verdict.APPROVED:
            return f"{name} {value}, at most {told_apart(it.high, it.limit)}, within {limit}"
        case Verdict.REJECTED:
            return f"{name} {value}, at least {told_apart(it.low, it.limit)}, above {limit}"
    low, high = told_apart(it.low, it.limit), told_apart(it.high, it.limit)
    if it.further_tokens is None:
        more = "no number of tokens would decide what equals its bound"
    else:
        more = f"not decided, run {it.further_tokens:,} more tokens of held-out text"
    return f"{name} {value}, between {low} and {high}, bound {limit}: {more}"


def told_apart(value: float, limit: float) -> str:
    """Write `value` with three digits, or more where it would read like `limit`."""
    if abs(value) < NEGLIGIBLE * abs(limit):
        return "0"
    for digits in range(SHOWN_DIGITS, MOST_DIGITS):
        shown = f"{value:.{digits}g}"
        if value == limit or float(shown) != limit:
            return shown
    return f"{value:.{MOST_DIGITS}g}"
