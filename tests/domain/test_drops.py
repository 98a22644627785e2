"""Several drops at once: Holm, the mean, and when a sequential evaluation may stop."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from pipeline.domain.drops import (
    MEAN,
    MeanDrop,
    Progress,
    after_look,
    combined,
    drop_verdicts,
    holm,
    with_mean,
)
from pipeline.domain.paired import from_drops
from pipeline.domain.params import Spending
from pipeline.domain.selection import Verdict
from pipeline.domain.sequential import ONLY_LOOK, Look
from tests.domain.test_paired import binary

FIRST_OF_FIVE = Look(1, 5, Spending.POCOCK)


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
    named = {str(number): value for number, value in enumerate(p_values)}
    assert holm(named, 0.05, ONLY_LOOK) == {str(number) for number in rejected}


def test_approval_needs_every_task_and_no_correction() -> None:
    """Each of 20 tasks is shown at 5 % by itself, and would not be at 5 % ÷ 20."""
    tasks = {f"task {number}": binary(300, 8, 4) for number in range(20)}
    margins = dict.fromkeys(tasks, 0.036) | {MEAN: 0.03}
    one_sided = tasks["task 0"].p_below(0.036)
    assert 0.05 / 20 < one_sided <= 0.05
    verdicts = drop_verdicts(with_mean(tasks), margins, ONLY_LOOK, 0.05)
    assert combined(verdicts.values()) is Verdict.APPROVED
    worse = tasks | {"task 7": binary(300, 15, 4)}
    verdicts = drop_verdicts(with_mean(worse), margins, ONLY_LOOK, 0.05)
    assert verdicts["task 7"] is Verdict.INCONCLUSIVE
    assert combined(verdicts.values()) is Verdict.INCONCLUSIVE


def test_one_bad_task_of_many_needs_more_evidence_to_reject() -> None:
    bad = binary(300, 24, 4)
    p_value = bad.p_above(0.03)
    assert 0.05 / 20 < p_value <= 0.05
    alone = drop_verdicts({"bad": bad}, {"bad": 0.03}, ONLY_LOOK, 0.05)
    assert alone == {"bad": Verdict.REJECTED}
    crowd = {"bad": bad} | {f"task {number}": binary(300, 2, 2) for number in range(20)}
    margins = dict.fromkeys(crowd, 0.03) | {MEAN: 0.03}
    assert drop_verdicts(with_mean(crowd), margins, ONLY_LOOK, 0.05)["bad"] is Verdict.INCONCLUSIVE


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
    assert set(with_mean({"only": binary(50, 1, 1)})) == {"only"}
    assert set(with_mean({"a": binary(50, 1, 1), "b": binary(50, 1, 1)})) == {"a", "b", MEAN}


@pytest.mark.parametrize(
    ("lost", "won", "progress"),
    [(2, 2, Progress.CLEAR_PASS), (40, 2, Progress.CLEAR_FAIL), (9, 2, Progress.CONTINUE)],
)
def test_a_sequential_evaluation_stops_when_it_is_clear(
    lost: int, won: int, progress: Progress
) -> None:
    tasks = {"task": binary(200, lost, won)}
    assert after_look(tasks, {"task": 0.05, MEAN: 0.02}, FIRST_OF_FIVE, 0.05) is progress


def test_an_early_look_asks_for_more_than_a_single_one() -> None:
    tasks = {"task": binary(200, 4, 2)}
    margins = {"task": 0.036}
    level = FIRST_OF_FIVE.level(0.05)
    assert level < tasks["task"].p_below(0.036) <= 0.05
    assert after_look(tasks, margins, FIRST_OF_FIVE, 0.05) is Progress.CONTINUE
    assert after_look(tasks, margins, ONLY_LOOK, 0.05) is Progress.CLEAR_PASS
