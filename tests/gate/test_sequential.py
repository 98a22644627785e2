"""Looks: what they may spend, that all together err with alpha, and in which order rows come."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from pipeline.core.errors import InputError
from pipeline.gate.sequential import (
    ONLY_LOOK,
    Look,
    levels,
    look_of,
    look_sizes,
    ordered,
    require_documents,
    sizes_so_far,
    spent,
)
from pipeline.params.gate import SequentialParams, Spending
from tests.gate.test_paired import row


@pytest.mark.parametrize("spending", list(Spending))
def test_all_is_spent_at_the_end_and_ever_more_on_the_way(spending: Spending) -> None:
    fractions = [0.1, 0.25, 0.5, 0.75, 1.0]
    amounts = [spent(0.05, it, spending) for it in fractions]
    assert amounts == sorted(amounts)
    assert amounts[-1] == pytest.approx(0.05, abs=1e-12)


@pytest.mark.parametrize("spending", list(Spending))
@pytest.mark.parametrize("num_looks", [2, 3])
def test_levels_spend_exactly_what_they_may(spending: Spending, num_looks: int) -> None:
    """Against the multivariate normal distribution of the looks' scores."""
    times = np.arange(1, num_looks + 1) / num_looks
    covariance = np.sqrt(np.minimum.outer(times, times) / np.maximum.outer(times, times))
    heights = -norm.ppf(levels(0.05, num_looks, spending))
    for number in range(1, num_looks + 1):
        quiet = multivariate_normal.cdf(
            heights[:number],
            mean=np.zeros(number),
            cov=covariance[:number, :number],
            abseps=1e-7,
            releps=1e-7,
        )
        assert 1 - quiet == pytest.approx(spent(0.05, times[number - 1], spending), abs=1e-6)


def test_known_boundaries_of_five_looks() -> None:
    """One-sided 2.5 %, from Reboussin et al. 2000, Controlled Clinical Trials 21:190."""
    found = -norm.ppf(levels(0.025, 5, Spending.OBRIEN_FLEMING))
    assert found == pytest.approx([4.877, 3.357, 2.680, 2.290, 2.031], abs=2e-3)


def test_simulated_walks_cross_with_alpha() -> None:
    generator = np.random.default_rng(2)
    steps = generator.normal(size=(200_000, 5)) / 5**0.5
    scores = steps.cumsum(axis=1) / np.sqrt(np.arange(1, 6) / 5)
    crossed = (scores > -norm.ppf(levels(0.05, 5, Spending.POCOCK))).any(axis=1).mean()
    assert crossed == pytest.approx(0.05, abs=0.0015)


def test_a_single_look_has_the_whole_level() -> None:
    assert ONLY_LOOK.level(0.05) == 0.05
    assert ONLY_LOOK.is_last
    assert not Look(1, 2, Spending.POCOCK).is_last


@pytest.mark.parametrize("spending", list(Spending))
def test_extreme_plans_have_levels_too(spending: Spending) -> None:
    found = levels(0.05 / 100, 20, spending)
    assert all(0 <= it < 0.05 / 100 for it in found)


def test_looks_are_at_equal_steps_and_end_with_all() -> None:
    assert look_sizes(600, 5) == (120, 240, 360, 480, 600)
    assert look_sizes(7, 3) == (3, 5, 7)


@pytest.mark.parametrize("num_looks", [2, 5, 20])
@pytest.mark.parametrize("num_documents", range(1, 45))
def test_every_look_is_at_new_documents_or_is_refused(num_documents: int, num_looks: int) -> None:
    params = SequentialParams(looks=num_looks, spending=Spending.POCOCK)
    if num_documents < num_looks:
        message = (
            rf"looks = {num_looks}: trades has {num_documents} documents.* at most {num_documents}"
        )
        with pytest.raises(InputError, match=message):
            require_documents("trades", num_documents, params)
        return
    require_documents("trades", num_documents, params)
    sizes = look_sizes(num_documents, num_looks)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == num_documents
    for number, size in enumerate(sizes, start=1):
        assert len(sizes_so_far(size, num_documents, params)) == number
    require_documents("trades", num_documents, None)


def test_the_number_of_documents_tells_the_looks() -> None:
    params = SequentialParams(looks=5, spending=Spending.POCOCK)
    assert sizes_so_far(240, 600, params) == (120, 240)
    assert sizes_so_far(600, 600, None) == (600,)
    assert look_of(2, params) == Look(2, 5, Spending.POCOCK)
    assert look_of(5, params).is_last
    assert look_of(1, None) == ONLY_LOOK
    with pytest.raises(InputError, match="250 of 600 documents were scored; expected 120 or 240"):
        sizes_so_far(250, 600, params)
    with pytest.raises(InputError, match="240 of 600 documents were scored; expected 600"):
        sizes_so_far(240, 600, None)


def test_the_order_is_not_that_of_the_file_and_keeps_passages_together() -> None:
    rows = [row(number, 1.0, cluster=f"passage {number // 3}") for number in range(90)]
    shuffled = ordered(rows)
    assert shuffled != rows
    assert ordered(shuffled[::-1]) == shuffled
    passages = [it.cluster for it in shuffled]
    assert all(len(set(passages[start : start + 3])) == 1 for start in range(0, 90, 3))
    late = sum(it.doc_id >= 45 for it in shuffled[:45])
    assert 10 < late < 35
