"""Test several drops against their margins at once, to approve small ones and reject large ones.

Approvals and rejections control their errors in different ways:

- Approval requires that *every* task is shown to stay below its margin. A variant that is too bad
  on a task is approved only if the test of this task errs. So each test may use the whole error
  rate, for 1 task or for 80 (an intersection-union test: Berger 1982, Technometrics 24:295). A
  correction would only cost power.
- Rejection requires *one* task above its margin. Among many tasks one looks bad by chance, so
  Holm's correction (1979, Scand. J. Statist. 6:65) keeps the error rate over all of them.

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
    """A drop with tests against a margin: of one task, or of the mean over tasks."""

    @property
    def drop(self) -> float: ...
    def p_below(self, margin: float) -> float: ...
    def p_above(self, margin: float) -> float: ...
    def upper(self, level: float) -> float: ...
    def lower(self, level: float) -> float: ...
    def further_documents(self, margin: float, *, level: float, power: float) -> int | None: ...


@dataclass(frozen=True)
class MeanDrop:
    """The mean of the tasks' drops, in which every task has the same weight.

    It is tested by Student's t, with the degrees of freedom of Welch and Satterthwaite.
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
        """Estimate the further documents over all tasks together, in their present proportions."""
        gap = abs(margin - self.drop)
        if isclose(margin, self.drop):
            return None
        quantiles = float(ndtri(1 - level) + ndtri(power))
        factor = (self.sd * quantiles / gap) ** 2
        return max(1, ceil((factor - 1) * sum(task.num_documents for task in self.tasks)))


@dataclass(frozen=True)
class DropTest:
    """A drop, its margin, and the look at which it is tested."""

    drop: Drop
    margin: float
    look: Look


History = Mapping[str, Sequence[PairedTask]]
"""The pairs of every task after each look so far, the latest last."""


def drop_tests(
    history: History, margins: Mapping[str, float], sequential: SequentialParams | None
) -> dict[str, DropTest]:
    """List the drops to test by name.

    They are the drop of each task at its latest look and, for several tasks, the drop of their mean
    at the last look that all tasks have had.
    """
    tests = {
        task: DropTest(pairs[-1], margins[task], look_of(len(pairs), sequential))
        for task, pairs in history.items()
    }
    if len(history) > 1:
        common = min(map(len, history.values()))
        mean = MeanDrop(tuple(pairs[common - 1] for pairs in history.values()))
        tests[MEAN] = DropTest(mean, margins[MEAN], look_of(common, sequential))
    return tests


def drop_verdicts(tests: Mapping[str, DropTest], error_rate: float) -> dict[str, Verdict]:
    """Decide on every drop, from their p-values alone."""
    rejected = holm(tests, error_rate)
    verdicts = {}
    for name, test in tests.items():
        if name in rejected:
            verdicts[name] = Verdict.REJECTED
        elif test.drop.p_below(test.margin) <= test.look.level(error_rate):
            verdicts[name] = Verdict.APPROVED
        else:
            verdicts[name] = Verdict.INCONCLUSIVE
    return verdicts


def holm(tests: Mapping[str, DropTest], error_rate: float) -> set[str]:
    """Return the names of the drops that Holm's procedure shows to be above their margins.

    The remaining drops share the error rate equally. After a rejection fewer remain, and each gets
    a larger share. A drop is tested at the level that its look has for this share.
    """
    p_values = {name: test.drop.p_above(test.margin) for name, test in tests.items()}
    rejected: set[str] = set()
    while remaining := p_values.keys() - rejected:
        share = error_rate / len(remaining)
        found = {name for name in remaining if p_values[name] <= tests[name].look.level(share)}
        if not found:
            break
        rejected |= found
    return rejected


def combined(verdicts: Collection[Verdict]) -> Verdict:
    """Combine verdicts: one rejection rejects, and approval needs every verdict to approve."""
    if Verdict.REJECTED in verdicts:
        return Verdict.REJECTED
    if all(verdict is Verdict.APPROVED for verdict in verdicts):
        return Verdict.APPROVED
    return Verdict.INCONCLUSIVE


class Progress(StrEnum):
    """The state of a sequential evaluation after a look."""

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
    """The next step after a look: more documents of `open_tasks` are scored."""

    progress: Progress
    open_tasks: tuple[str, ...]


def after_look(
    history: History, margins: Mapping[str, float], sequential: SequentialParams, error_rate: float
) -> Step:
    """Decide whether to score more documents, and of which tasks.

    `margins` has one for each task and one for MEAN. All tasks continue while the mean is
    inconclusive; after that, only inconclusive tasks do. A drop that is inconclusive after the last
    document stays so.
    """
    tests = drop_tests(history, margins, sequential)
    verdicts = drop_verdicts(tests, error_rate)
    progress = PROGRESS[combined(verdicts.values())]
    if progress is not Progress.CONTINUE:
        return Step(progress, ())
    mean_is_open = verdicts.get(MEAN) is Verdict.INCONCLUSIVE
    open_tasks = tuple(
        task
        for task in history
        if (mean_is_open or verdicts[task] is Verdict.INCONCLUSIVE) and not tests[task].look.is_last
    )
    return Step(progress, open_tasks)


def drop_records(
    history: History, margins: Mapping[str, float], gate: GateParams
) -> dict[str, DropVerdict]:
    """Decide on every drop of `drop_tests`, and record the verdicts with their numbers.

    The p-value of an exact test is not quite monotonic in the margin, so a bound can be beyond a
    margin that the test at that margin excludes. The test decides, and the bound is cut there.
    """
    tests = drop_tests(history, margins, gate.sequential)
    records = {}
    for name, verdict in drop_verdicts(tests, gate.error_rate).items():
        test = tests[name]
        drop, margin, level = test.drop, test.margin, test.look.level(gate.error_rate)
        further = None
        if verdict is Verdict.INCONCLUSIVE:
            # A drop above its margin is rejected at Holm's strictest level at worst.
            num_tests = 1 if drop.drop < margin else len(tests)
            level_to_reach = test.look.level(gate.error_rate / num_tests)
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
