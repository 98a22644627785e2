"""Statistics of repeated rounds of a load: medians, intervals and the crossover with the base.

A round runs every model under the same load, one right after the other, so that a disturbance of
the machine affects all of them. Ratios are taken within a round. Intervals are percentile
bootstraps of the median over rounds (Efron 1979, Ann. Statist. 7:1), from a fixed seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log2
from random import Random
from statistics import median

from pipeline.core.record import Record

# Fewer rounds do not show their spread.
MIN_ROUNDS = 3
NUM_RESAMPLES = 2000
SEED = 0
CONFIDENCE = 0.95


class Estimate(Record):
    """The median over rounds with its 95 % interval, which is null below MIN_ROUNDS rounds."""

    median: float
    low: float | None
    high: float | None

    def is_narrow(self, narrow_enough: float) -> bool:
        """Tell whether both bounds are within the fraction `narrow_enough` of the median."""
        if self.low is None or self.high is None:
            return False
        reach = narrow_enough * self.median
        return self.median - self.low <= reach and self.high - self.median <= reach


def estimate(values: Sequence[float]) -> Estimate:
    """Return the median of at least one value, and its bootstrap interval."""
    if len(values) < MIN_ROUNDS:
        return Estimate(median=median(values), low=None, high=None)
    random = Random(SEED)
    medians = sorted(median(random.choices(values, k=len(values))) for _ in range(NUM_RESAMPLES))
    tail = round((1 - CONFIDENCE) / 2 * NUM_RESAMPLES)
    return Estimate(median=median(values), low=medians[tail], high=medians[-1 - tail])


def ratio(values: Sequence[float], base_values: Sequence[float]) -> Estimate | None:
    """Return the ratio to the base over the rounds that both completed; None without any."""
    pairs = [(a, b) for a, b in zip(values, base_values, strict=False) if b > 0]
    return estimate([a / b for a, b in pairs]) if pairs else None


@dataclass(frozen=True)
class Crossover:
    """The number of `users` from which a variant is slower than the base; None if it never is.

    `low` and `high` are the numbers of users at which the bounds of the ratio's interval fall below
    1. A `high` of None is beyond the measured loads.
    """

    users: float | None
    low: float | None
    high: float | None
    max_users: int


def crossover(ratios: Sequence[tuple[int, Estimate]]) -> Crossover:
    """Find the number of users from which the throughput ratios stay below 1.

    `ratios` are sorted by their number of users. Between measured loads the ratio is interpolated
    linearly in the logarithm of the users.
    """
    users = [count for count, _ in ratios]
    middle = [ratio.median for _, ratio in ratios]
    low = [ratio.median if ratio.low is None else ratio.low for _, ratio in ratios]
    high = [ratio.median if ratio.high is None else ratio.high for _, ratio in ratios]
    return Crossover(
        users=_falls_below_one(users, middle),
        low=_falls_below_one(users, low),
        high=_falls_below_one(users, high),
        max_users=users[-1],
    )


def _falls_below_one(users: Sequence[int], ratios: Sequence[float]) -> float | None:
    """Return the number of users after which the line through `ratios` stays below 1."""
    if ratios[-1] >= 1:
        return None
    points = list(zip(users, ratios, strict=True))
    for (left, before), (right, after) in reversed(list(pairwise(points))):
        if before >= 1:
            share = (before - 1) / (before - after)
            return float(left * 2 ** (share * log2(right / left)))
    return float(users[0])
