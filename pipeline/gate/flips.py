"""Test and bound the drop exactly, from right and wrong answers to the same documents.

The drop is the share of documents that turn from right to wrong minus the share that turn from
wrong to right. The statistic is Tango's score (Tango 1998, Statistics in Medicine 17:891). Its
normal approximation errs too often where few documents turn. So its probability is computed
exactly, at the worst value of the nuisance parameter, the share of gains: Hsueh, Liu & Chen 2001,
Biometrics 57:478. This value is searched in a confidence interval of that share: Berger & Boos
1994, JASA 89:1012.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import bdtr, bdtrc, betaincinv, gammaln, ndtri, xlog1py, xlogy
from scipy.stats import binomtest

Floats = npt.NDArray[np.float64]

EXCLUDED = 1e-6
"""The probability that the share of gains is outside its interval; added to every p-value."""

GRID_POINTS = 32
FINE_POINTS = 9
TINY = 1e-12
BOUND_TOLERANCE = 1e-7
MOST = 1 - BOUND_TOLERANCE


@dataclass(frozen=True)
class Flips:
    """The numbers of documents, among `num_documents`, whose answers turned each way."""

    num_documents: int
    right_to_wrong: int
    wrong_to_right: int

    @property
    def drop(self) -> float:
        return (self.right_to_wrong - self.wrong_to_right) / self.num_documents

    @property
    def mirrored(self) -> "Flips":
        return Flips(self.num_documents, self.wrong_to_right, self.right_to_wrong)


def mcnemar_p(flips: Flips) -> float:
    """Return the exact two-sided p-value of no drop (McNemar 1947): a binomial test of the flips.

    It is 1 when no answer turned.
    """
    turned = flips.right_to_wrong + flips.wrong_to_right
    return float(binomtest(flips.right_to_wrong, turned).pvalue) if turned else 1.0


def score(
    right_to_wrong: npt.ArrayLike, wrong_to_right: npt.ArrayLike, num_documents: int, drop: float
) -> Floats:
    """Compute Tango's statistic of the hypothesis that the true drop is `drop`, in [0, 1).

    It is asymptotically standard normal under the hypothesis, and rises with the losses. It is 0
    where no answer turned and none was expected to.
    """
    lost, won = np.asarray(right_to_wrong, float), np.asarray(wrong_to_right, float)
    linear = lost + won + (lost - won) * drop - 2 * num_documents * drop
    root = np.sqrt(linear**2 + 8 * num_documents * won * drop * (1 - drop))
    # The larger root of 2 n q² − linear q − won drop (1 − drop), without cancellation.
    with np.errstate(invalid="ignore", divide="ignore"):
        other = 2 * won * drop * (1 - drop) / (root - linear)
    share_won = np.where(linear >= 0, (linear + root) / (4 * num_documents), other)
    variance = num_documents * (2 * share_won + drop * (1 - drop))
    difference = lost - won - num_documents * drop
    statistic: Floats = difference / np.sqrt(np.where(variance > 0, variance, 1.0))
    return statistic


def p_below(flips: Flips, margin: float) -> float:
    """Return the p-value of "the drop is at least `margin`"; a small one shows that it is below."""
    return _tail(flips, margin, below=True)


def p_above(flips: Flips, margin: float) -> float:
    """Return the p-value of "the drop is at most `margin`"; a small one shows that it is above."""
    return _tail(flips, margin, below=False)


def upper_bound(flips: Flips, level: float) -> float:
    """Return the largest drop that is not excluded at `level`: a bound of confidence 1 − level."""

    def excess(margin: float) -> float:
        return p_below(flips, margin) - level

    low = high = _normal_upper_bound(flips, level)
    step = max(high - flips.drop, 1 / flips.num_documents) / 8
    while low > -MOST and excess(low) <= 0:
        low, step = max(low - step, -MOST), 2 * step
    while high < MOST and excess(high) > 0:
        high, step = min(high + step, MOST), 2 * step
    if high == MOST and excess(high) > 0:
        return 1.0
    return float(brentq(excess, low, high, xtol=BOUND_TOLERANCE))


def _normal_upper_bound(flips: Flips, level: float) -> float:
    """Return the same bound by the score's normal approximation: Tango's own interval."""
    quantile = float(ndtri(level))

    def excess(margin: float) -> float:
        return _score_of(flips, margin) - quantile

    return (
        float(brentq(excess, flips.drop, MOST)) if excess(MOST) < 0 < excess(flips.drop) else MOST
    )


def _score_of(flips: Flips, margin: float) -> float:
    """Return the score for a margin in (-1, 1). Its sign changes when the models are exchanged."""
    if margin < 0:
        return -_score_of(flips.mirrored, -margin)
    return float(score(flips.right_to_wrong, flips.wrong_to_right, flips.num_documents, margin))


def lower_bound(flips: Flips, level: float) -> float:
    """Return the smallest drop that is not excluded at `level`."""
    return -upper_bound(flips.mirrored, level)


@lru_cache(maxsize=1 << 16)
def _tail(flips: Flips, margin: float, *, below: bool) -> float:
    """Return the largest probability, over the share of gains, of a score as extreme as this."""
    if margin < 0:
        return _tail(flips.mirrored, -margin, below=not below)
    if margin >= 1:
        return 0.0 if below else 1.0
    shares = _possible_shares(flips, margin)
    if len(shares) == 0:
        return EXCLUDED
    coarse = _extreme_probability(flips, margin, shares, below=below)
    at = int(coarse.argmax())
    around = np.linspace(shares[max(at - 1, 0)], shares[min(at + 1, len(shares) - 1)], FINE_POINTS)
    fine = _extreme_probability(flips, margin, around, below=below)
    return min(1.0, float(max(coarse[at], fine.max())) + EXCLUDED)


def _extreme_probability(flips: Flips, margin: float, shares: Floats, *, below: bool) -> Floats:
    """Return the probability of a score as extreme as this one, for each share of gains."""
    n = flips.num_documents
    # Other numbers of gains have a negligible probability at every share.
    least, most = n * shares[0], n * shares[-1]
    low, high = least - (7 * least**0.5 + 16), most + (7 * most**0.5 + 16)
    won = np.arange(max(0, int(low)), min(n, int(high)) + 1)
    ways = gammaln(n + 1) - gammaln(won + 1) - gammaln(n - won + 1)
    share = shares[:, None]
    probability_of_won = np.exp(ways + xlogy(won, share) + xlog1py(n - won, -share))
    lost = _extreme_losses(flips, margin, won, below=below)
    chance = np.minimum((shares + margin) / (1 - shares), 1.0)[:, None]
    others = (n - won)[None, :]
    if below:
        tail = np.where(lost >= 0, bdtr(np.maximum(lost, 0.0), others, chance), 0.0)
    else:
        tail = np.where(lost > 0, bdtrc(np.maximum(lost - 1, 0.0), others, chance), 1.0)
        tail = np.where(lost > others, 0.0, tail)
    probabilities: Floats = (probability_of_won * tail).sum(axis=1)
    return probabilities


def _possible_shares(flips: Flips, margin: float) -> Floats:
    """Return a grid over the exact interval of the share of gains, within what `margin` allows."""
    n, won = flips.num_documents, flips.wrong_to_right
    low = betaincinv(won, n - won + 1, EXCLUDED / 2) if won else 0.0
    high = betaincinv(won + 1, n - won, 1 - EXCLUDED / 2) if won < n else 1.0
    most = (1 - margin) / 2
    if low > most:
        return np.empty(0)
    return np.linspace(low**0.5, min(high, most) ** 0.5, GRID_POINTS) ** 2


def _extreme_losses(
    flips: Flips, margin: float, won: npt.NDArray[np.int64], *, below: bool
) -> npt.NDArray[np.int64]:
    """Find for each number of gains the most losses whose score does not exceed the observed one.

    With `below` false, find the fewest losses whose score is no smaller. The score rises with the
    losses.
    """
    n = flips.num_documents
    observed = _score_of(flips, margin)
    slack = TINY * max(1.0, abs(observed))
    low, high = np.full_like(won, -1), n - won + 1
    while np.any(high - low > 1):
        middle = (low + high) // 2
        values = score(middle, won, n, margin)
        left = values <= observed + slack if below else values < observed - slack
        low, high = np.where(left, middle, low), np.where(left, high, middle)
    return low if below else high
