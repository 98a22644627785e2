import math

import numpy as np
import pytest
from scipy import stats

from pipeline.domain.distance import (
    WindowDistance,
    log_softmax,
    negative_log_likelihoods,
    perplexity,
    summarize,
    window_distance,
)


def random_logits(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 4.0, shape).astype(np.float32)


def direct_kl(base: np.ndarray, variant: np.ndarray) -> float:
    """KL of one position by the definition, with exact sums of float64 terms."""
    p = [math.exp(float(it)) for it in base]
    q = [math.exp(float(it)) for it in variant]
    p_sum, q_sum = math.fsum(p), math.fsum(q)
    return math.fsum(
        a / p_sum * math.log((a / p_sum) / (b / q_sum)) for a, b in zip(p, q, strict=True)
    )


def test_kl_is_the_definition() -> None:
    base, variant = random_logits(20, 300, seed=1), random_logits(20, 300, seed=2)
    found = window_distance(log_softmax(base), log_softmax(variant))
    for position in range(20):
        expected = direct_kl(base[position], variant[position])
        assert found.kl[position] == pytest.approx(expected, rel=1e-12)
        same = int(base[position].argmax()) == int(variant[position].argmax())
        assert bool(found.same_top1[position]) == same


def test_a_model_is_at_no_distance_from_itself_whatever_is_added_to_its_logits() -> None:
    logits = random_logits(8, 50, seed=3).astype(np.float64)
    found = window_distance(log_softmax(logits), log_softmax(logits + 7.0))
    assert (found.kl >= 0).all()
    assert found.kl.max() < 1e-12
    assert found.same_top1.all()


def test_large_logits_do_not_overflow() -> None:
    rows = log_softmax(np.array([[30000.0, 29999.0, -30000.0]], dtype=np.float32))
    assert rows[0, 0] == pytest.approx(-math.log1p(math.exp(-1)), rel=1e-12)


def test_likelihoods_are_those_of_the_next_tokens() -> None:
    rows = log_softmax(random_logits(3, 5, seed=4))
    losses = negative_log_likelihoods(rows, [4, 0, 2])
    assert losses.tolist() == [-rows[0, 0], -rows[1, 2]]


def test_perplexity_of_equal_chances_is_their_number() -> None:
    rows = log_softmax(np.zeros((4, 9), dtype=np.float32))
    losses = [negative_log_likelihoods(rows, [1, 2, 3, 4]), negative_log_likelihoods(rows, [5, 6])]
    assert perplexity(losses) == pytest.approx(9.0, rel=1e-12)


def windows(*kls: list[float]) -> list[WindowDistance]:
    return [WindowDistance(np.array(kl), np.array([it < 0.5 for it in kl])) for kl in kls]


def test_the_interval_is_student_t_over_windows() -> None:
    values = np.random.default_rng(5).exponential(0.1, (12, 40))
    found = summarize(windows(*values.tolist()))
    interval = stats.ttest_1samp(values.mean(axis=1), 0.0).confidence_interval(0.95)
    assert found.kl == pytest.approx(values.mean(), rel=1e-12)
    assert (found.kl_low, found.kl_high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.kl_median == np.median(values)
    assert found.kl_p99 == np.quantile(values, 0.99)
    assert found.kl_max == values.max()
    assert found.top1 == (values < 0.5).mean()


def test_the_interval_does_not_go_below_zero() -> None:
    assert summarize(windows([0.0, 0.0], [0.0, 1.0])).kl_low == 0.0
