"""Several drops at once: Holm, the mean, and when a sequential evaluation may stop."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from pipeline.gate.drops import (
    MEAN,
    DropTest,
    MeanDrop,
    Progress,
    Step,
    after_look,
    combined,
    drop_tests,
    drop_verdicts,
    holm,
)
from pipeline.gate.paired import PairedTask, from_drops
from pipeline.gate.sequential import ONLY_LOOK
from pipeline.params.gate import SequentialParams, Spending
from pipeline.records.selection import Verdict
from tests.gate.test_paired import binary

SEQUENTIAL = SequentialParams(looks=5, spending=Spending.POCOCK)


@dataclass(frozen=True)
class Known:
    """A drop with a known p-value of being too large."""

    p_value: float

    drop = 0.0

    def p_below(self, margin: float) -> float:
        return 1.0

    def p_above(self, margin: float) -> float:
        return self.p_value

    def upper(self, level: float) -> float:
        return 1.0

    def lower(self, level: float) -> float:
        return -1.0

    def further_documents(self, margin: float, *, level: float, power: float) -> int | None:
        return None


@pytest.mark.parametrize(
    ("p_values", "rejected"),
    [
        ((0.01, 0.2, 0.9), {0}),
        ((0.017, 0.2, 0.9), set()),
        ((0.016, 0.024, 0.049), {0, 1, 2}),
        ((0.03, 0.04, 0.001), {2}),
        ((0.04,), {0}),
    ],
)
def test_holm_steps_down(p_values: tuple[float, ...], rejected: set[int]) -> None:
    """The thresholds are 0.05 ÷ 3, ÷ 2, ÷ 1, and the first that fails ends it."""
    tested = {str(it): DropTest(Known(p), 0.05, ONLY_LOOK) for it, p in enumerate(p_values)}
    assert holm(tested, 0.05) == {str(it) for it in rejected}


def verdicts_on(tasks: dict[str, PairedTask], margins: dict[str, float]) -> dict[str, Verdict]:
    history = {task: (pairs,) for task, pairs in tasks.items()}
    return drop_verdicts(drop_tests(history, margins, None), 0.05)


def test_approval_needs_every_task_and_no_correction() -> None:
    """Each of 20 tasks is shown at 5 % by itself, and would not be at 5 % ÷ 20."""
    tasks = {f"task {number}": binary(300, 8, 4) for number in range(20)}
    margins = dict.fromkeys(tasks, 0.036) | {MEAN: 0.03}
    assert 0.05 / 20 < tasks["task 0"].p_below(0.036) <= 0.05
    assert combined(verdicts_on(tasks, margins).values()) is Verdict.APPROVED
    verdicts = verdicts_on(tasks | {"task 7": binary(300, 15, 4)}, margins)
    assert verdicts["task 7"] is Verdict.INCONCLUSIVE
    assert combined(verdicts.values()) is Verdict.INCONCLUSIVE


def test_one_bad_task_of_many_needs_more_evidence_to_reject() -> None:
    bad = binary(300, 24, 4)
    assert 0.05 / 20 < bad.p_above(0.03) <= 0.05
    assert verdicts_on({"bad": bad}, {"bad": 0.03}) == {"bad": Verdict.REJECTED}
    crowd = {"bad": bad} | {f"task {number}": binary(300, 2, 2) for number in range(20)}
    margins = dict.fromkeys(crowd, 0.03) | {MEAN: 0.03}
    assert verdicts_on(crowd, margins)["bad"] is Verdict.INCONCLUSIVE


def test_the_mean_counts_every_task_the_same() -> None:
    generator = np.random.default_rng(4)
    samples = [generator.normal(0.02, 0.1, size) for size in (50, 400)]
    tasks = tuple(
        from_drops(it, [str(number) for number in range(len(it))], binary=False) for it in samples
    )
    mean = MeanDrop(tasks)
    assert mean.drop == pytest.approx((samples[0].mean() + samples[1].mean()) / 2)
    expected = (samples[0].var(ddof=1) / 50 + samples[1].var(ddof=1) / 400) ** 0.5 / 2
    assert mean.sd == pytest.approx(expected, abs=1e-12)
    alone = MeanDrop(tasks[:1])
    reference = ttest_1samp(samples[0], 0.03, alternative="less")
    assert alone.p_below(0.03) == pytest.approx(reference.pvalue, abs=1e-9)
    assert alone.p_below(0.03) + alone.p_above(0.03) == pytest.approx(1)
    assert alone.lower(0.05) < alone.drop < alone.upper(0.05)


def test_a_single_task_has_no_mean() -> None:
    pairs = binary(50, 1, 1)
    margins = {"a": 0.1, "b": 0.1, MEAN: 0.1}
    assert set(drop_tests({"a": [pairs]}, margins, None)) == {"a"}
    assert set(drop_tests({"a": [pairs], "b": [pairs]}, margins, None)) == {"a", "b", MEAN}


def test_the_mean_is_tested_at_the_last_look_that_all_tasks_had() -> None:
    first, later = binary(100, 1, 1), binary(200, 40, 1)
    history = {"a": [first], "b": [first, later]}
    margins = {"a": 0.05, "b": 0.05, MEAN: 0.02}
    tested = drop_tests(history, margins, SEQUENTIAL)
    assert tested[MEAN].drop == MeanDrop((first, first))
    assert [tested[name].look.number for name in ("a", "b", MEAN)] == [1, 2, 1]


@pytest.mark.parametrize(
    ("lost", "won", "step"),
    [
        (2, 2, Step(Progress.CLEAR_PASS, ())),
        (40, 2, Step(Progress.CLEAR_FAIL, ())),
        (9, 2, Step(Progress.CONTINUE, ("task",))),
    ],
)
def test_a_sequential_evaluation_stops_when_it_is_clear(lost: int, won: int, step: Step) -> None:
    history = {"task": [binary(200, lost, won)]}
    assert after_look(history, {"task": 0.05}, SEQUENTIAL, 0.05) == step


def test_only_open_tasks_go_on_once_the_mean_is_clear() -> None:
    clear, still_open = binary(200, 1, 1), binary(200, 9, 2)
    history = {"clear": [clear], "open": [still_open]}
    margins = {"clear": 0.05, "open": 0.05}
    loose, tight = margins | {MEAN: 0.06}, margins | {MEAN: 0.03}
    assert after_look(history, loose, SEQUENTIAL, 0.05).open_tasks == ("open",)
    assert after_look(history, tight, SEQUENTIAL, 0.05).open_tasks == ("clear", "open")


def test_after_the_last_look_nothing_is_open() -> None:
    history = {"task": [binary(200, 9, 2)] * 5}
    assert after_look(history, {"task": 0.025}, SEQUENTIAL, 0.05) == Step(Progress.CONTINUE, ())


def test_an_early_look_asks_for_more_than_a_single_one() -> None:
    pairs = binary(200, 4, 2)
    early = drop_tests({"task": [pairs]}, {"task": 0.036}, SEQUENTIAL)
    only = drop_tests({"task": [pairs]}, {"task": 0.036}, None)
    assert early["task"].look.level(0.05) < pairs.p_below(0.036) <= 0.05
    assert drop_verdicts(early, 0.05) == {"task": Verdict.INCONCLUSIVE}
    assert drop_verdicts(only, 0.05) == {"task": Verdict.APPROVED}
