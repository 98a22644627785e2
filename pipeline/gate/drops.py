"""Test several drops against their margins at once, to approve small ones and reject large ones.

Approving and rejecting need different care, because they go wrong in different ways:

- Approval asks that *every* task be shown to stay below its margin. A variant that is too bad on
  some task is approved only if that one test errs, so each may be tested at the whole error rate,
  with 1 task or with 80 (an intersection-union test: Berger 1982, Technometrics 24:295). Correcting
  would only cost power.
- Rejection needs *one* task beyond its margin. With many tasks one of them will look bad by chance,
  so Holm's correction (1979, Scand. J. Statist. 6:65) keeps the error rate over all of them.

The mean over tasks is one more drop with a margin of its own, stratified by task.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil, isclose
from statistics import fmean
from typing import Protocol

from scipy.special import ndtri, stdtr, stdtrit

from pipeline.gate.paired import PairedTask
from pipeline.gate.sequential import Look, look_of
from pipeline.params.gate import GateParams, SequentialParams
from pipeline.records.selection import DropVerdict, Verdict

MEAN = "mean over tasks"


class Drop(Protocol):
    """Offer the tests of a drop against a margin."""

    @property
    def drop(self) -> float: ...
    def p_below(self, margin: float) -> float: ...
    def p_above(self, margin: float) -> float: ...
    def upper(self, level: float) -> float: ...
    def lower(self, level: float) -> float: ...
    def further_documents(self, margin: float, *, level: float, power: float) -> int | None: ...


@dataclass(frozen=True)
class MeanDrop:
    """Test the mean of the tasks' drops, in which every task counts the same.

    Student's t, with the degrees of freedom of Welch and Satterthwaite.
    """

    tasks: tuple[PairedTask, ...]

    @property
    def drop(self) -> float:
        return fmean(task.drop for task in self.tasks)

    @property
    def sd(self) -> float:
        return float(sum(task.smooth_variance for task in self.tasks) ** 0.5) / len(self.tasks)

    @property
    def degrees_of_freedom(self) -> float:
        parts = [(task.smooth_variance, max(task.num_clusters - 1, 1)) for task in self.tasks]
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
        """Count the documents over all tasks together, in the proportions they have."""
        gap = abs(margin - self.drop)
        if isclose(margin, self.drop):
            return None
        quantiles = float(ndtri(1 - level) + ndtri(power))
        factor = (self.sd * quantiles / gap) ** 2
        return max(1, ceil((factor - 1) * sum(task.num_documents for task in self.tasks)))


@dataclass(frozen=True)
class HeldDrop:
    """Hold a drop, its margin, and the look at which it is tested."""

    drop: Drop
    margin: float
    look: Look


History = Mapping[str, Sequence[PairedTask]]
"""The pairs of every task after each look so far, the latest last."""


def held_drops(
    history: History, margins: Mapping[str, float], sequential: SequentialParams | None
) -> dict[str, HeldDrop]:
    """Return every drop to be tested.

    They are the drop of each task at its latest look and, where there are several tasks, the drop
    of their mean at the last look that all tasks have had.
    """
    held = {
        task: HeldDrop(pairs[-1], margins[task], look_of(len(pairs), sequential))
        for task, pairs in history.items()
    }
    if len(history) > 1:
        common = min(map(len, history.values()))
        mean = MeanDrop(tuple(pairs[common - 1] for pairs in history.values()))
        held[MEAN] = HeldDrop(mean, margins[MEAN], look_of(common, sequential))
    return held


def drop_verdicts(held: Mapping[str, HeldDrop], error_rate: float) -> dict[str, Verdict]:
    """Decide on every drop, from their p-values alone."""
    rejected = holm(held, error_rate)
    verdicts = {}
    for name, test in held.items():
        if name in rejected:
            verdicts[name] = Verdict.REJECTED
        elif test.drop.p_below(test.margin) <= test.look.level(error_rate):
            verdicts[name] = Verdict.APPROVED
        else:
            verdicts[name] = Verdict.INCONCLUSIVE
    return verdicts


def holm(held: Mapping[str, HeldDrop], error_rate: float) -> set[str]:
    """Return the names that Holm's procedure shows to be above their margins.

    One rejection after another shares the error rate among fewer that are left; each is tested at
    the level that its own look gives its share.
    """
    p_values = {name: test.drop.p_above(test.margin) for name, test in held.items()}
    rejected: set[str] = set()
    while left := p_values.keys() - rejected:
        share = error_rate / len(left)
        found = {name for name in left if p_values[name] <= held[name].look.level(share)}
        if not found:
            break
        rejected |= found
    return rejected


def combined(verdicts: Collection[Verdict]) -> Verdict:
    """Combine verdicts: one rejection rejects, approval needs all."""
    if Verdict.REJECTED in verdicts:
        return Verdict.REJECTED
    if all(verdict is Verdict.APPROVED for verdict in verdicts):
        return Verdict.APPROVED
    return Verdict.INCONCLUSIVE


class Progress(StrEnum):
    """Say whether a sequential evaluation goes on."""

    CONTINUE = "continue"
    CLEAR_PASS = "clear_pass"
    CLEAR_FAIL = "clear_fail"


PROGRESS = {
    Verdict.APPROVED: Progress.CLEAR_PASS,
    Verdict.REJECTED: Progress.CLEAR_FAIL,
    Verdict.INCONCLUSIVE: Progress.CONTINUE,
}


@dataclass(frozen=True)
class Step:
    """Hold the next step after a look: `open_tasks` get their next documents."""

    progress: Progress
    open_tasks: tuple[str, ...]


def after_look(
    history: History, margins: Mapping[str, float], sequential: SequentialParams, error_rate: float
) -> Step:
    """Decide whether to score more documents, and of which tasks.

    `margins` has one for each task and one for MEAN. While the mean is open all tasks go on; then
    those that are open themselves. What is still open when there are no more documents is
    inconclusive.
    """
    held = held_drops(history, margins, sequential)
    verdicts = drop_verdicts(held, error_rate)
    progress = PROGRESS[combined(verdicts.values())]
    if progress is not Progress.CONTINUE:
        return Step(progress, ())
    mean_is_open = verdicts.get(MEAN) is Verdict.INCONCLUSIVE
    open_tasks = tuple(
        task
        for task in history
        if (mean_is_open or verdicts[task] is Verdict.INCONCLUSIVE) and not held[task].look.is_last
    )
    return Step(progress, open_tasks)


def drop_records(
    history: History, margins: Mapping[str, float], gate: GateParams
) -> dict[str, DropVerdict]:
    """Return the verdict on every drop of `held_drops`, with its numbers.

    The p-value of an exact test does not fall quite evenly with the margin, so that a bound can lie
    beyond a margin that the test at that margin excludes; the test counts.
    """
    held_by_name = held_drops(history, margins, gate.sequential)
    records = {}
    for name, verdict in drop_verdicts(held_by_name, gate.error_rate).items():
        held = held_by_name[name]
        drop, margin, level = held.drop, held.margin, held.look.level(gate.error_rate)
        further = None
        if verdict is Verdict.INCONCLUSIVE:
            # Above its margin it would be rejected, at worst at the strictest level of Holm.
            tests = 1 if drop.drop < margin else len(held_by_name)
            level_to_reach = held.look.level(gate.error_rate / tests)
            further = drop.further_documents(margin, level=level_to_reach, power=gate.power)
        low, high = drop.lower(level), drop.upper(level)
        records[name] = DropVerdict(
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
    return records
