import math

import numpy as np
import pytest
from scipy import stats

from pipeline.engines import distance
from pipeline.engines.distance import (
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


def random_ids(count: int) -> list[int]:
    return [int(it) for it in np.random.default_rng(9).integers(0, 50, count)]


def place(window: int, position: int) -> str:
    return f"{window}, {position}"


def test_kl_and_losses_are_the_definition_however_it_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, variant = random_logits(20, 300, seed=1), random_logits(20, 300, seed=2)
    ids = random_ids(20)
    monkeypatch.setattr(distance, "CHUNK_ENTRIES", 7 * 300)
    found = window_distance(base, variant, ids)
    assert len(found.kl) == 19
    for position in range(19):
        expected = direct_kl(base[position], variant[position])
        assert found.kl[position] == pytest.approx(expected, rel=1e-9)
        same = int(base[position].argmax()) == int(variant[position].argmax())
        assert bool(found.same_top1[position]) == same
    assert found.base_losses.tolist() == negative_log_likelihoods(base, ids).tolist()
    assert found.own_losses.tolist() == negative_log_likelihoods(variant, ids).tolist()


def test_a_model_is_at_no_distance_from_itself_whatever_is_added_to_its_logits() -> None:
    logits = random_logits(8, 50, seed=3).astype(np.float64)
    found = window_distance(logits, logits + 7.0, random_ids(8))
    assert (found.kl >= 0).all()
    assert found.kl.max() < 1e-12
    assert found.same_top1.all()


def test_large_logits_do_not_overflow() -> None:
    rows = log_softmax(np.array([[30000.0, 29999.0, -30000.0]], dtype=np.float32))
    assert rows[0, 0] == pytest.approx(-math.log1p(math.exp(-1)), rel=1e-12)


def test_likelihoods_are_those_of_the_next_tokens() -> None:
    logits = random_logits(3, 5, seed=4)
    rows = log_softmax(logits)
    losses = negative_log_likelihoods(logits, [4, 0, 2])
    assert losses.tolist() == [-rows[0, 0], -rows[1, 2]]


def test_perplexity_of_equal_chances_is_their_number() -> None:
    logits = np.zeros((4, 9), dtype=np.float32)
    losses = [
        negative_log_likelihoods(logits, [1, 2, 3, 4]),
        negative_log_likelihoods(logits[:2], [5, 6]),
    ]
    assert perplexity(losses) == pytest.approx(9.0, rel=1e-12)


def windows(kls: np.ndarray, base: np.ndarray, own: np.ndarray) -> list[WindowDistance]:
    return [WindowDistance(a, a < 0.5, b, c) for a, b, c in zip(kls, base, own, strict=True)]


def test_a_summary_is_what_its_words_mean() -> None:
    draw = np.random.default_rng(5).exponential
    kl, base, own = draw(0.1, (12, 40)), draw(2.0, (12, 40)), draw(2.1, (12, 40))
    found = summarize(windows(kl, base, own), place)
    interval = stats.ttest_1samp(kl.mean(axis=1), 0.0).confidence_interval(0.95)
    assert found.kl == pytest.approx(kl.mean(), rel=1e-12)
    assert (found.kl_low, found.kl_high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.kl_median == np.median(kl)
    assert found.kl_p99 == np.quantile(kl, 0.99)
    assert found.kl_p999 == np.quantile(kl, 0.999)
    assert found.kl_max == kl.max()
    assert found.kl_max_text == "{}, {}".format(*np.unravel_index(kl.argmax(), kl.shape))
    assert found.top1 == (kl < 0.5).mean()
    assert found.perplexity_ratio == pytest.approx(
        np.exp(own.mean()) / np.exp(base.mean()), rel=1e-12
    )
    logs = stats.ttest_1samp((own - base).mean(axis=1), 0.0).confidence_interval(0.95)
    assert (found.perplexity_ratio_low, found.perplexity_ratio_high) == pytest.approx(
        (math.exp(logs.low), math.exp(logs.high)), rel=1e-9
    )
    change = np.exp(-own) - np.exp(-base)
    assert found.probability_change == pytest.approx(change.mean(), rel=1e-12)
    assert found.probability_change_rms == pytest.approx(math.sqrt((change**2).mean()), rel=1e-12)


def test_the_interval_does_not_go_below_zero() -> None:
    zeros = np.zeros((2, 2))
    assert summarize(windows(np.array([[0.0, 0.0], [0.0, 1.0]]), zeros, zeros), place).kl_low == 0.0
