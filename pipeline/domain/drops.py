"""Several drops against their margins at once: which are shown to be small, which to be too large.

Approving and rejecting need different care, because they go wrong in different ways:

- Approval asks that *every* task be shown to stay below its margin. A variant that is too bad on
  some task is approved only if that one test errs, so each may be tested at the whole error rate,
  with 1 task or with 80 (an intersection-union test: Berger 1982, Technometrics 24:295). Correcting
  would only cost power.
- Rejection needs *one* task beyond its margin. With many tasks one of them will look bad by chance,
  so Holm's correction (1979, Scand. J. Statist. 6:65) keeps the error rate over all of them.

The mean over tasks is one more drop with a margin of its own, stratified by task.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from statistics import fmean
from typing import Protocol

from scipy.special import ndtri, stdtr, stdtrit

from pipeline.domain.paired import PairedTask
from pipeline.domain.selection import DropVerdict, Verdict
from pipeline.domain.sequential import Look

MEAN = "mean over tasks"


class Drop(Protocol):
    """What can be tested against a margin."""

    @property
    def drop(self) -> float: ...
    def p_below(self, margin: float) -> float: ...
    def p_above(self, margin: float) -> float: ...
    def upper(self, level: float) -> float: ...
    def lower(self, level: float) -> float: ...
    def further_documents(self, margin: float, *, level: float, power: float) -> int | None: ...


@dataclass(frozen=True)
class MeanDrop:
    """The mean of the tasks' drops, every task counting the same; Student's t with the degrees of
    freedom of Welch and Satterthwaite."""

    tasks: tuple[PairedTask, ...]

    @property
    def drop(self) -> float:
        return fmean(it.drop for it in self.tasks)

    @property
    def sd(self) -> float:
        return float(sum(it.smooth_variance for it in self.tasks) ** 0.5) / len(self.tasks)

    @property
    def degrees_of_freedom(self) -> float:
        parts = [(it.smooth_variance, max(it.num_clusters - 1, 1)) for it in self.tasks]
        squares = sum(variance**2 / freedom for variance, freedom in parts)
        return sum(variance for variance, _ in parts) ** 2 / squares if squares else 1.0

    def p_below(self, margin: float) -> float:
        if self.sd == 0:
            return 0.0 if self.drop < margin else 1.0
        return float(stdtr(self.degrees_of_freedom, (self.drop - margin) / self.sd))

    def p_above(self, margin: float) -> float:
        if self.sd == 0:
            return 0.0 if self.drop > margin else 1.0
        return float(stdtr(self.degrees_of_freedom, (margin - self.drop) / self.sd))

    def upper(self, level: float) -> float:
        return self.drop + float(stdtrit(self.degrees_of_freedom, 1 - level)) * self.sd

    def lower(self, level: float) -> float:
        return self.drop - float(stdtrit(self.degrees_of_freedom, 1 - level)) * self.sd

    def further_documents(self, margin: float, *, level: float, power: float) -> int | None:
        """Over all tasks together, in the proportions they have."""
        gap = abs(margin - self.drop)
        if gap == 0:
            return None
        quantiles = float(ndtri(1 - level) + ndtri(power))
        factor = (self.sd * quantiles / gap) ** 2
        return max(1, ceil((factor - 1) * sum(it.num_documents for it in self.tasks)))


class Progress(StrEnum):
    """Whether a sequential evaluation goes on."""

    CONTINUE = "continue"
    CLEAR_PASS = "clear_pass"
    CLEAR_FAIL = "clear_fail"


def with_mean(tasks: Mapping[str, PairedTask]) -> dict[str, Drop]:
    """Every drop to be tested: of each task and, where there are several, of their mean."""
    mean = {MEAN: MeanDrop(tuple(tasks.values()))} if len(tasks) > 1 else {}
    return {**tasks, **mean}


def drop_verdicts(
    drops: Mapping[str, Drop], margins: Mapping[str, float], look: Look, error_rate: float
) -> dict[str, Verdict]:
    """The verdict on every drop, from their p-values alone."""
    level = look.level(error_rate)
    p_above = {name: drop.p_above(margins[name]) for name, drop in drops.items()}
    rejected = holm(p_above, error_rate, look)
    verdicts = {}
    for name, drop in drops.items():
        if name in rejected:
            verdicts[name] = Verdict.REJECTED
        elif drop.p_below(margins[name]) <= level:
            verdicts[name] = Verdict.APPROVED
        else:
            verdicts[name] = Verdict.INCONCLUSIVE
    return verdicts


def holm(p_values: Mapping[str, float], error_rate: float, look: Look) -> set[str]:
    """The names that Holm's procedure rejects, the smallest p-value first."""
    rejected: set[str] = set()
    for name in sorted(p_values, key=lambda it: p_values[it]):
        if p_values[name] > look.level(error_rate / (len(p_values) - len(rejected))):
            break
        rejected.add(name)
    return rejected


def combined(verdicts: Collection[Verdict]) -> Verdict:
    """One rejection rejects; approval needs all."""
    if Verdict.REJECTED in verdicts:
        return Verdict.REJECTED
    if all(it is Verdict.APPROVED for it in verdicts):
        return Verdict.APPROVED
    return Verdict.INCONCLUSIVE


def after_look(
    tasks: Mapping[str, PairedTask], margins: Mapping[str, float], look: Look, error_rate: float
) -> Progress:
    """Whether to score more documents.

    `tasks` has the pairs so far, `margins` a margin for each task and one for MEAN. What is still
    open when there are no more documents is inconclusive.
    """
    match combined(drop_verdicts(with_mean(tasks), margins, look, error_rate).values()):
        case Verdict.APPROVED:
            return Progress.CLEAR_PASS
        case Verdict.REJECTED:
            return Progress.CLEAR_FAIL
    return Progress.CONTINUE


def drop_record(
    drop: Drop,
    margin: float,
    verdict: Verdict,
    *,
    level: float,
    rejection_level: float,
    power: float,
) -> DropVerdict:
    """A verdict with its numbers. `rejection_level` is the strictest that Holm can ask for.

    The p-value of an exact test does not fall quite evenly with the margin, so that a bound can lie
    beyond a margin that the test at that margin excludes; the test counts.
    """
    further = None
    if verdict is Verdict.INCONCLUSIVE:
        deciding = level if drop.drop < margin else rejection_level
        further = drop.further_documents(margin, level=deciding, power=power)
    low, high = drop.lower(level), drop.upper(level)
    return DropVerdict(
        verdict=verdict,
        drop=drop.drop,
        low=max(low, margin) if verdict is Verdict.REJECTED else low,
        high=min(high, margin) if verdict is Verdict.APPROVED else high,
        level=level,
        margin=margin,
        p_below=drop.p_below(margin),
        p_above=drop.p_above(margin),
        further_documents=further,
    )
