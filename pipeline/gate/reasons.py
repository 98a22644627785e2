"""Write the gate's verdicts as sentences: the measurement, its bound, and what would decide it.

Numbers have as many digits as are needed to distinguish them from their threshold.
"""

from collections.abc import Mapping

from pipeline.gate.drops import MEAN
from pipeline.records.selection import BoundVerdict, DropVerdict, Verdict

SHOWN_DIGITS = 3
MOST_DIGITS = 17
"""Enough digits to distinguish any two float64 numbers."""
NEGLIGIBLE = 1e-12
"""A share of the threshold: smaller values are the rounding error of a sum that is zero."""


def reasons_for(
    verdict: Verdict, drops: Mapping[str, DropVerdict], bounds: Mapping[str, BoundVerdict]
) -> tuple[str, ...]:
    """Write the reasons of a verdict, one sentence each.

    A rejection names the drops and bounds that failed, an inconclusive verdict those that are open.
    An approval names the task nearest to its margin, the mean and the bounds.
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


def drop_sentence(name: str, record: DropVerdict) -> str:
    """Write a sentence about a drop: its bound and its margin, or what would decide it."""
    margin, confidence = f"{record.margin:.6g}", f"{100 * (1 - record.level):.4g} %"
    drop, low, high = (
        distinct(value, record.margin) for value in (record.drop, record.low, record.high)
    )
    match record.verdict:
        case Verdict.APPROVED:
            return (
                f"{name}: drop {drop}, at most {high} with {confidence} confidence, within {margin}"
            )
        case Verdict.REJECTED:
            return (
                f"{name}: drop {drop}, at least {low} with {confidence} confidence, above {margin}"
            )
    if record.further_documents is None:
        more = "no number of documents would decide what equals its margin"
    else:
        more = f"not decided, run {record.further_documents:,} more documents"
    return f"{name}: drop {drop}, between {low} and {high}, margin {margin}: {more}"


def bound_sentence(name: str, record: BoundVerdict) -> str:
    """Write a sentence about KL or perplexity ratio: the end of its interval and the limit."""
    limit = f"{record.limit:.6g}"
    value, low, high = (
        distinct(value, record.limit) for value in (record.value, record.low, record.high)
    )
    match record.verdict:
        case Verdict.APPROVED:
            return f"{name} {value}, at most {high}, within {limit}"
        case Verdict.REJECTED:
            return f"{name} {value}, at least {low}, above {limit}"
    if record.further_tokens is None:
        more = "no number of tokens would decide what equals its bound"
    else:
        more = f"not decided, run {record.further_tokens:,} more tokens of held-out text"
    return f"{name} {value}, between {low} and {high}, bound {limit}: {more}"


def distinct(value: float, limit: float) -> str:
    """Format `value` with three digits, or with more where it would read like `limit`."""
    if abs(value) < NEGLIGIBLE * abs(limit):
        return "0"
    for digits in range(SHOWN_DIGITS, MOST_DIGITS):
        shown = f"{value:.{digits}g}"
        if value == limit or float(shown) != limit:
            return shown
    return f"{value:.{MOST_DIGITS}g}"
