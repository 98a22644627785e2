"""The score, its exact tests and bounds, against likelihoods and enumerations written out."""

import random
from math import log

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import beta, binomtest, multinomial

from pipeline.gate.flips import (
    EXCLUDED,
    Flips,
    lower_bound,
    mcnemar_p,
    p_above,
    p_below,
    score,
    upper_bound,
)

TABLES = [(30, 3, 1), (30, 0, 2), (30, 9, 9), (25, 0, 0), (40, 12, 1), (12, 5, 5)]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("drop", [0.01, 0.05, 0.2])
def test_the_score_is_that_of_the_maximised_likelihood(
    table: tuple[int, int, int], drop: float
) -> None:
    n, lost, won = table

    def minus_log_likelihood(share: float) -> float:
        cells = ((lost, share + drop), (won, share), (n - lost - won, 1 - 2 * share - drop))
        return -sum(count * log(p) for count, p in cells if count)

    best = minimize_scalar(
        minus_log_likelihood,
        bounds=(1e-15, (1 - drop) / 2 - 1e-15),
        method="bounded",
        options={"xatol": 1e-14},
    ).x
    # Polished by Newton's method on the derivative, which a search of values cannot resolve.
    for _ in range(50):
        if won == 0 and best < 1e-9:
            best = 0.0
            break
        rest = 1 - 2 * best - drop
        first = lost / (best + drop) + won / best - 2 * (n - lost - won) / rest
        second = -lost / (best + drop) ** 2 - won / best**2 - 4 * (n - lost - won) / rest**2
        best -= first / second
    expected = (lost - won - n * drop) / (n * (2 * best + drop - drop**2)) ** 0.5
    assert float(score(lost, won, n, drop)) == pytest.approx(expected, abs=1e-9)


def test_against_no_drop_the_score_is_mcnemar() -> None:
    assert float(score(9, 4, 100, 0.0)) == pytest.approx((9 - 4) / 13**0.5, abs=1e-12)
    assert float(score(0, 0, 100, 0.0)) == 0.0


def enumerated(flips: Flips, margin: float, *, below: bool) -> float:
    """The worst probability of a score as extreme, over every outcome and the shares of gains that
    an exact interval (Clopper & Pearson) leaves."""
    n = flips.num_documents
    outcomes = np.array([(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)])
    scores = score(outcomes[:, 0], outcomes[:, 1], n, margin)
    observed = float(score(flips.right_to_wrong, flips.wrong_to_right, n, margin))
    extreme = scores <= observed + 1e-9 if below else scores >= observed - 1e-9
    worst = 0.0
    won, room = flips.wrong_to_right, (1 - margin) / 2
    low = beta.ppf(EXCLUDED / 2, won, n - won + 1) if won else 0.0
    high = beta.ppf(1 - EXCLUDED / 2, won + 1, n - won)
    for share in np.linspace(low, min(high, room), 400):
        chances = (share + margin, share, max(1 - 2 * share - margin, 0.0))
        worst = max(worst, multinomial.pmf(outcomes[extreme], n, chances).sum())
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("margin", [0.05, 0.2])
def test_p_values_are_those_of_an_enumeration(table: tuple[int, int, int], margin: float) -> None:
    flips = Flips(*table)
    assert p_below(flips, margin) == pytest.approx(enumerated(flips, margin, below=True), abs=5e-4)
    assert p_above(flips, margin) == pytest.approx(enumerated(flips, margin, below=False), abs=5e-4)


def test_where_nothing_turned_a_drop_would_have_shown_itself() -> None:
    """The chance that none of n documents turns is (1 − margin)ⁿ: the rule of three."""
    for n, margin in [(100, 0.02), (300, 0.01), (1000, 0.004)]:
        assert (1 - margin) ** n <= p_below(Flips(n, 0, 0), margin) <= 1.2 * (1 - margin) ** n
    assert upper_bound(Flips(300, 0, 0), 0.05) == pytest.approx(1 - 0.05 ** (1 / 300), abs=1e-5)


@pytest.mark.parametrize("table", [(300, 4, 1), (600, 0, 3), (1000, 30, 12), (50, 50, 0)])
def test_mcnemar_is_the_binomial_test(table: tuple[int, int, int]) -> None:
    n, lost, won = table
    expected = binomtest(lost, lost + won, 0.5).pvalue
    assert mcnemar_p(Flips(n, lost, won)) == pytest.approx(expected, abs=1e-9)
    assert mcnemar_p(Flips(n, 0, 0)) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_documents", "margin", "share"),
    [(60, 0.05, 0.0), (60, 0.05, 0.1), (60, 0.1, 0.02), (100, 0.02, 0.005), (50, 0.02, 0.3)],
)
def test_errors_are_at_most_the_level_in_both_directions(
    num_documents: int, margin: float, share: float
) -> None:
    """The probability of every outcome that a test calls significant, summed up."""
    n, level, wrong_below, wrong_above = num_documents, 0.05, 0.0, 0.0
    chances = (share + margin, share, 1 - 2 * share - margin)
    outcomes = [(lost, won) for lost in range(n + 1) for won in range(n + 1 - lost)]
    counts = [(lost, won, n - lost - won) for lost, won in outcomes]
    for (lost, won), probability in zip(outcomes, multinomial.pmf(counts, n, chances), strict=True):
        if probability > 1e-7:
            flips = Flips(n, lost, won)
            wrong_below += probability * (p_below(flips, margin) <= level)
            wrong_above += probability * (p_above(flips, margin) <= level)
    assert wrong_below <= level
    assert wrong_above <= level


def test_more_losses_are_never_better() -> None:
    generator = random.Random(1)
    for _ in range(40):
        n = generator.randint(20, 400)
        lost, won = generator.randint(0, n // 5), generator.randint(0, n // 5)
        margin = generator.uniform(0.005, 0.2)
        assert (
            p_below(Flips(n, lost, won), margin) <= p_below(Flips(n, lost + 1, won), margin) + 2e-3
        )
        assert (
            p_above(Flips(n, lost, won), margin) >= p_above(Flips(n, lost + 1, won), margin) - 2e-3
        )


def test_bounds_are_where_the_p_value_passes_the_level() -> None:
    for table in [(600, 24, 7), (300, 1, 1), (150, 0, 6), (40, 12, 1)]:
        flips = Flips(*table)
        upper, lower = upper_bound(flips, 0.05), lower_bound(flips, 0.05)
        assert lower < flips.drop < upper
        assert p_below(flips, upper + 1e-6) <= 0.05 + 1e-3
        assert p_above(flips, lower - 1e-6) <= 0.05 + 1e-3
        assert upper == pytest.approx(-lower_bound(flips.mirrored, 0.05), abs=1e-9)


def test_the_smallest_samples_have_bounds_too() -> None:
    assert upper_bound(Flips(1, 1, 0), 0.05) == 1.0
    assert lower_bound(Flips(1, 0, 1), 0.05) == -1.0
    assert p_below(Flips(1, 0, 0), 1.0) == 0.0
    assert p_above(Flips(1, 1, 0), 1.0) == 1.0
