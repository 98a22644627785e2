"""Pairs of one task: right counts, the paired t of scipy, clusters, perplexities, sample sizes."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from pipeline.core.errors import InputError
from pipeline.gate.flips import Flips, p_below
from pipeline.gate.paired import PairedTask, from_drops, paired_task
from pipeline.records.evaluation import DocumentRecord

Metric = float | tuple[float, ...]


def row(
    number: int, value: Metric, *, metric: str = "acc", cluster: str | None = None
) -> DocumentRecord:
    name = f"document {number}"
    return DocumentRecord(
        task="task",
        doc_id=number,
        doc_hash=name,
        cluster=cluster or name,
        prompt_hash=name,
        target="0",
        logprobs=None,
        generated="text",
        metrics={metric: value},
    )


def rows(values: list[Metric], metric: str = "acc") -> list[DocumentRecord]:
    return [row(number, value, metric=metric) for number, value in enumerate(values)]


def binary(n: int, lost: int, won: int) -> PairedTask:
    drops = np.array([1.0] * lost + [-1.0] * won + [0.0] * (n - lost - won))
    return from_drops(drops, [str(it) for it in range(n)], binary=True)


def test_flips_are_decomposed_and_more_is_worse_in_both_directions() -> None:
    base, own = rows([1.0, 1.0, 1.0, 0.0, 0.0]), rows([0.0, 0.0, 1.0, 1.0, 0.0])
    task = paired_task(base, own, metric="acc", higher_is_better=True)
    assert task.flips == Flips(5, right_to_wrong=2, wrong_to_right=1)
    assert task.drop == pytest.approx(0.2)
    assert task.binary
    other = paired_task(base, own, metric="acc", higher_is_better=False)
    assert other.flips == task.flips.mirrored
    assert other.drop == -task.drop


def test_answers_of_0_and_1_get_the_exact_test() -> None:
    task = binary(300, 6, 2)
    assert task.p_below(0.05) == p_below(Flips(300, 6, 2), 0.05)
    assert task.p_above(0.05) == p_below(Flips(300, 2, 6), -0.05)


def test_other_metrics_get_the_t_test_of_scipy() -> None:
    generator = np.random.default_rng(3)
    base, own = generator.normal(0.6, 0.1, 80), generator.normal(0.59, 0.1, 80)
    task = paired_task(
        rows(list(base), "f1"), rows(list(own), "f1"), metric="f1", higher_is_better=True
    )
    below = ttest_1samp(base - own, 0.05, alternative="less")
    above = ttest_1samp(base - own, 0.05, alternative="greater")
    assert task.p_below(0.05) == pytest.approx(below.pvalue, abs=1e-9)
    assert task.p_above(0.05) == pytest.approx(above.pvalue, abs=1e-9)
    interval = ttest_1samp(base - own, 0.0).confidence_interval(0.9)
    assert task.lower(0.05) == pytest.approx(interval.low, abs=1e-9)
    assert task.upper(0.05) == pytest.approx(interval.high, abs=1e-9)


def test_documents_that_repeat_a_passage_count_once() -> None:
    """Every document four times, in clusters, is as sure as every document once."""
    generator = np.random.default_rng(5)
    drops = generator.normal(0.02, 0.1, 50)
    once = from_drops(drops, [str(it) for it in range(50)], binary=False)
    four = from_drops(
        np.repeat(drops, 4), [str(it) for it in range(50) for _ in range(4)], binary=False
    )
    assert four.design_effect == pytest.approx(4, rel=0.02)
    assert four.upper(0.05) == pytest.approx(once.upper(0.05), abs=1e-9)
    assert four.p_below(0.05) == pytest.approx(once.p_below(0.05), abs=1e-9)


def test_clusters_make_0_and_1_less_sure() -> None:
    drops = np.array(([1.0] * 4 + [0.0] * 96) * 4)
    apart = from_drops(drops, [str(it) for it in range(400)], binary=True)
    together = from_drops(drops, [str(it // 4) for it in range(400)], binary=True)
    assert together.num_clusters == 100
    assert together.upper(0.05) > apart.upper(0.05)
    assert together.p_below(0.1) > apart.p_below(0.1)
    untouched = from_drops(np.zeros(400), [str(it // 4) for it in range(400)], binary=True)
    assert untouched.design_effect == 4
    assert untouched.upper(0.05) == pytest.approx(binary(100, 0, 0).upper(0.05), abs=1e-6)


def test_one_passage_for_all_shows_nothing() -> None:
    task = from_drops(np.array([1.0, 0.0, 0.0]), ["a", "a", "a"], binary=True)
    assert task.p_below(0.9) == 1.0
    assert task.upper(0.05) == 1.0
    same = [row(number, 0.5, metric="f1", cluster="a") for number in range(3)]
    with pytest.raises(InputError, match="task: its documents all share one passage"):
        paired_task(same, same, metric="f1", higher_is_better=True)


def test_a_perplexity_is_compared_as_a_whole() -> None:
    """The drop is the difference of the perplexities; doubling every text changes nothing."""
    base: list[Metric] = [(-20.0, 10.0), (-33.0, 15.0), (-41.0, 20.0)]
    own: list[Metric] = [(-22.0, 10.0), (-33.5, 15.0), (-44.0, 20.0)]
    task = paired_task(
        rows(base, "word_perplexity"),
        rows(own, "word_perplexity"),
        metric="word_perplexity",
        higher_is_better=False,
    )
    assert task.drop == pytest.approx(math.exp(99.5 / 45) - math.exp(94 / 45), abs=1e-9)
    assert not task.binary
    assert task.flips == Flips(3, 3, 0) or task.flips.num_documents == 3
    bits = paired_task(
        rows(base, "bits_per_byte"),
        rows(own, "bits_per_byte"),
        metric="bits_per_byte",
        higher_is_better=False,
    )
    assert bits.drop == pytest.approx(5.5 / 45 / math.log(2), abs=1e-9)


@pytest.mark.slow
def test_the_spread_of_a_perplexity_is_that_of_repeated_samples() -> None:
    generator = np.random.default_rng(11)

    def sample() -> PairedTask:
        lengths = generator.integers(20, 80, 200).astype(float)
        base = -2.0 * lengths + generator.normal(0, 6, 200)
        own = base - 0.02 * lengths + generator.normal(0, 2, 200)
        return paired_task(
            rows(list(zip(base, lengths, strict=True)), "byte_perplexity"),
            rows(list(zip(own, lengths, strict=True)), "byte_perplexity"),
            metric="byte_perplexity",
            higher_is_better=False,
        )

    samples = [sample() for _ in range(300)]
    observed = np.std([it.drop for it in samples])
    claimed = np.mean([it.variance for it in samples]) ** 0.5
    assert claimed == pytest.approx(observed, rel=0.12)


def test_nothing_changed_in_another_metric_excludes_only_what_would_have_shown() -> None:
    same: list[Metric] = [0.25] * 60
    task = paired_task(rows(same, "f1"), rows(same, "f1"), metric="f1", higher_is_better=True)
    assert task.p_below(0.05) == pytest.approx(0.95**60)
    assert task.upper(0.05) == pytest.approx(1 - 0.05 ** (1 / 60))
    assert task.p_above(0.05) == 1.0


@pytest.mark.parametrize(
    ("table", "margin"),
    [((300, 14, 9), 0.03), ((300, 20, 5), 0.03), ((150, 2, 0), 0.02), ((40, 0, 0), 0.02)],
)
def test_the_documents_that_are_asked_for_decide(
    table: tuple[int, int, int], margin: float
) -> None:
    task = binary(*table)
    assert not task.decides(margin, 0.05)
    further = task.further_documents(margin, level=0.05, power=0.8)
    assert further is not None
    assert task.scaled(task.num_documents + further).decides(margin, 0.05)


def test_the_number_of_documents_is_that_of_the_formula() -> None:
    """5 % flips, 1 point, 80 % power, no true drop: about 3,090 documents."""
    task = binary(1000, 25, 25)
    further = task.further_documents(0.01, level=0.05, power=0.8)
    assert further is not None
    assert 1000 + further == pytest.approx(0.05 * (1.645 + 0.8416) ** 2 / 0.01**2, rel=0.06)


def test_what_equals_the_margin_no_number_of_documents_decides() -> None:
    task = binary(100, 5, 0)
    assert replace(task, drop=0.05).further_documents(0.05, level=0.05, power=0.8) is None


def test_a_worse_variant_is_never_shown_to_be_better() -> None:
    generator = random.Random(7)
    for _ in range(60):
        n = generator.randint(10, 300)
        lost = generator.randint(0, n // 4)
        won = generator.randint(0, n // 4)
        better, worse = binary(n, lost, won), binary(n, lost + 1, won)
        assert worse.p_below(0.05) >= better.p_below(0.05) - 2e-3
