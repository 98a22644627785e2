"""Rounds: intervals that hold what they should, and the load from which a variant is slower."""

import random

import pytest

from pipeline.records.rounds import Estimate, crossover, estimate, ratio


def exact(*ratios: tuple[int, float]) -> list[tuple[int, Estimate]]:
    return [(users, Estimate(median=it, low=0.95 * it, high=1.05 * it)) for users, it in ratios]


def test_an_interval_needs_three_rounds() -> None:
    assert estimate([2.0, 4.0]) == Estimate(median=3.0, low=None, high=None)
    assert not estimate([2.0, 2.0]).is_narrow(0.5)
    assert estimate([2.0, 2.0, 2.0]).is_narrow(1e-9)


def test_the_interval_covers_the_median_of_most_samples() -> None:
    draw = random.Random(1)
    inside = 0
    for _ in range(100):
        found = estimate([draw.gauss(1.0, 0.1) for _ in range(9)])
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.median <= found.high
        inside += found.low <= 1.0 <= found.high
    assert inside >= 88


def test_what_slows_a_whole_round_leaves_the_ratio_alone() -> None:
    base = [100.0, 60.0, 140.0, 80.0, 110.0]
    found = ratio([1.5 * it for it in base], base)
    assert found == Estimate(median=1.5, low=1.5, high=1.5)


def test_rounds_that_the_base_did_not_finish_do_not_count() -> None:
    assert ratio([3.0, 3.0, 3.0], [2.0]) == Estimate(median=1.5, low=None, high=None)
    assert ratio([3.0], []) is None


def test_a_variant_that_stays_faster_has_no_crossover() -> None:
    found = crossover(exact((1, 1.8), (8, 1.4), (32, 1.2)))
    assert (found.users, found.low, found.high, found.max_users) == (None, None, None, 32)


def test_the_crossover_lies_between_the_loads_around_it_and_inside_its_interval() -> None:
    found = crossover(exact((1, 1.8), (8, 1.2), (32, 0.6)))
    assert found.users is not None
    assert found.low is not None
    assert found.high is not None
    assert 8 < found.low < found.users < found.high < 32
    assert found.users == pytest.approx(8 * 4 ** (1 / 3))


def test_a_variant_that_is_always_slower_crosses_at_the_first_load() -> None:
    assert crossover(exact((1, 0.9), (8, 0.8))).users == 1


def test_one_slow_load_before_a_fast_one_is_no_crossover() -> None:
    assert crossover(exact((1, 0.9), (8, 1.3))).users is None


def test_an_upper_bound_beyond_the_measured_loads_is_open() -> None:
    found = crossover(exact((1, 1.8), (32, 0.97)))
    assert found.users is not None
    assert found.high is None
