"""Test how much a variant lost on one task, from the answers of both models to its documents.

The drop is the base's metric minus the variant's (the other way round where lower is better), so
that more is worse. Answers are paired by document, which makes small drops visible: Miller 2024,
arXiv 2411.00640. A score can stay the same while answers flip: arXiv 2407.09141.

- Metrics of 0 and 1 get the exact test of `pipeline.gate.flips`.
- Other metrics get Student's t over clusters of documents.
- Documents that share a passage form a cluster. For metrics of 0 and 1 counts are then divided by
  the design effect (Rao & Scott 1992, Biometrics 48:577), rounded against what is to be shown, and
  the t over clusters has to agree.
- A perplexity is no mean over documents; what each adds to it is linearised (the delta method).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, floor, isclose, log, sqrt

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtr, stdtrit

from pipeline.core.errors import InputError
from pipeline.gate import flips as exact
from pipeline.gate.flips import Flips
from pipeline.records.evaluation import DocumentRecord

Floats = npt.NDArray[np.float64]

# Metrics whose documents add a log-likelihood and a length, by lm-eval's names of them: the score
# as a function of log-likelihood per unit of length, and its derivative.
RATES: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "word_perplexity": (lambda rate: exp(-rate), lambda rate: -exp(-rate)),
    "byte_perplexity": (lambda rate: exp(-rate), lambda rate: -exp(-rate)),
    "perplexity": (lambda rate: exp(-rate), lambda rate: -exp(-rate)),
    "bits_per_byte": (lambda rate: -rate / log(2), lambda rate: -1 / log(2)),
}
GROWTH = 1.1
LARGE = 20_000
"""From this number of documents on, the normal approximation stands for the exact test."""


@dataclass(frozen=True)
class PairedTask:
    """Summarize the pairs of one task. `flips` counts documents that got worse and better.

    `variance` is that of the mean drop, over clusters; `binary` says that the metric is 0 or 1.
    """

    flips: Flips
    drop: float
    variance: float
    binary: bool
    num_clusters: int
    design_effect: float

    @property
    def num_documents(self) -> int:
        return self.flips.num_documents

    def p_below(self, margin: float) -> float:
        """Return a p-value, small when the drop is shown to be below `margin`."""
        if not self.binary:
            return self._t_below(margin)
        p_value = exact.p_below(self._effective, margin)
        return p_value if self._independent else max(p_value, self._t_below(margin))

    def p_above(self, margin: float) -> float:
        """Return a p-value, small when the drop is shown to be above `margin`."""
        return self.mirrored.p_below(-margin)

    def upper(self, level: float) -> float:
        """Return the largest drop that the pairs do not exclude at `level`."""
        if not self.binary:
            return self._t_upper(level)
        bound = exact.upper_bound(self._effective, level)
        return bound if self._independent else max(bound, self._t_upper(level))

    def lower(self, level: float) -> float:
        """Return the least drop that the pairs do not exclude at `level`."""
        return -self.mirrored.upper(level)

    @property
    def mirrored(self) -> "PairedTask":
        """Return the same pairs with the models exchanged."""
        return replace(self, flips=self.flips.mirrored, drop=-self.drop)

    @property
    def smooth_variance(self) -> float:
        """Return the variance; where the metric is 0 or 1, at least that of one more flip each way.

        Few flips tell little about how many there are (Bonett & Price 2012, J. Educ. Behav. Stat.
        37:479).
        """
        if not self.binary:
            return self.variance
        total = self.num_documents + 2
        lost, won = self.flips.right_to_wrong + 1, self.flips.wrong_to_right + 1
        adjusted = (lost + won - (lost - won) ** 2 / total) / total**2
        return max(self.variance, adjusted * self.design_effect)

    def further_documents(self, margin: float, *, level: float, power: float) -> int | None:
        """Estimate how many more documents like these would decide about `margin`.

        n = σ² (z + z')² / (margin − drop)², the sample size of a paired comparison, raised until
        these pairs in that number pass the test itself. None when the drop equals the margin.
        """
        gap = abs(margin - self.drop)
        if isclose(margin, self.drop):
            return None
        quantiles = float(ndtri(1 - level) + ndtri(power))
        spread = self.num_documents * self.smooth_variance
        total = max(self.num_documents + 1, ceil(spread * (quantiles / gap) ** 2))
        while total < LARGE and not self.scaled(total).decides(margin, level):
            total = ceil(total * GROWTH)
        return total - self.num_documents

    def decides(self, margin: float, level: float) -> bool:
        """Return whether the drop is shown to be below the margin, or above it."""
        one_sided = self.p_below if self.drop < margin else self.p_above
        return one_sided(margin) <= level

    def scaled(self, num_documents: int) -> "PairedTask":
        """Return `num_documents` documents with the same shares of flips."""
        factor = num_documents / self.num_documents
        flips = Flips(
            num_documents,
            round(self.flips.right_to_wrong * factor),
            round(self.flips.wrong_to_right * factor),
        )
        return replace(
            self,
            flips=flips,
            variance=self.variance / factor,
            num_clusters=round(self.num_clusters * factor),
        )

    @property
    def _independent(self) -> bool:
        return self.num_clusters == self.num_documents

    @property
    def _effective(self) -> Flips:
        """Return the flips as if documents were independent, rounded against a small drop."""
        total = max(1, floor(self.num_documents / self.design_effect))
        won = floor(self.flips.wrong_to_right / self.design_effect)
        lost = min(ceil(self.flips.right_to_wrong / self.design_effect), total - won)
        return Flips(total, lost, won)

    def _t_below(self, margin: float) -> float:
        gap = margin - self.drop
        if self.num_clusters < 2:
            return 1.0
        if self.variance == 0:  # nothing differed: so much would have been seen
            return float((1 - min(gap, 1.0)) ** self.num_clusters) if gap > 0 else 1.0
        return float(stdtr(self.num_clusters - 1, -gap / sqrt(self.variance)))

    def _t_upper(self, level: float) -> float:
        if self.num_clusters < 2:
            return 1.0
        if self.variance == 0:
            return self.drop + 1 - float(level ** (1.0 / self.num_clusters))
        quantile = float(stdtrit(self.num_clusters - 1, 1 - level))
        return self.drop + quantile * sqrt(self.variance)


def paired_task(
    base: Sequence[DocumentRecord],
    own: Sequence[DocumentRecord],
    *,
    metric: str,
    higher_is_better: bool,
) -> PairedTask:
    """Pair the rows of one task: at least one, in the same order, of the same documents.

    The metric is a number for each document, or one of RATES. Raises InputError for one that is not
    0 or 1 and has a single cluster.
    """
    sign = 1.0 if higher_is_better else -1.0
    drops = sign * (_values(base, metric) - _values(own, metric))
    clusters = [row.cluster for row in base]
    binary = _is_binary(base, metric) and _is_binary(own, metric)
    if not binary and len(set(clusters)) < 2:
        raise InputError(
            f"{base[0].task}: its documents all share one passage, which says nothing about "
            f"others; expected at least two passages for {metric}"
        )
    return from_drops(drops, clusters, binary=binary)


def from_drops(drops: Floats, clusters: Sequence[str], *, binary: bool) -> PairedTask:
    """Summarize the drop of each document, with the cluster that it belongs to."""
    n = len(drops)
    mean = float(drops.mean())
    _, members = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(members, weights=drops - mean).astype(float)
    sizes = np.bincount(members).astype(float)
    return PairedTask(
        flips=Flips(n, int((drops > 0).sum()), int((drops < 0).sum())),
        drop=mean,
        variance=_clustered_variance(sums, n),
        binary=binary,
        num_clusters=len(sums),
        design_effect=_design_effect(drops, sums, sizes),
    )


def _clustered_variance(sums: Floats, num_documents: int) -> float:
    """Return the variance of the mean, from each cluster's sum of deviations; 0 for one cluster."""
    count = len(sums)
    return count / max(count - 1, 1) * float((sums**2).sum()) / num_documents**2


def _design_effect(drops: Floats, sums: Floats, sizes: Floats) -> float:
    """Return by how much clusters raise the variance; the most possible if nothing differs."""
    n = len(drops)
    if len(sizes) == n:
        return 1.0
    independent = _clustered_variance(drops - drops.mean(), n)
    if independent == 0:
        return float((sizes**2).sum() / n)
    return max(1.0, _clustered_variance(sums, n) / independent)


def _is_binary(rows: Sequence[DocumentRecord], metric: str) -> bool:
    return metric not in RATES and all(row.metrics[metric] in (0.0, 1.0) for row in rows)


def _values(rows: Sequence[DocumentRecord], metric: str) -> Floats:
    """Return one number for each document, whose mean is the score."""
    if metric not in RATES:
        return np.array([row.metrics[metric] for row in rows], dtype=float)
    pairs = np.array([_rate_pair(row.metrics[metric]) for row in rows])
    score, derivative = RATES[metric]
    rate = float(pairs[:, 0].sum() / pairs[:, 1].sum())
    residuals = (pairs[:, 0] - rate * pairs[:, 1]) / pairs[:, 1].mean()
    values: Floats = score(rate) + derivative(rate) * residuals
    return values


def _rate_pair(value: float | tuple[float, ...]) -> tuple[float, float]:
    """Return log-likelihood and length of a document; a plain number has length 1."""
    return (value[0], value[1]) if isinstance(value, tuple) else (value, 1.0)
