"""Test how much a variant lost on one task, from the answers of both models to its documents.

The drop is the base's metric minus the variant's, or the other way round where lower is better: a
larger drop is worse. Answers are paired by document, which makes small drops visible: Miller 2024,
arXiv 2411.00640. A score can stay the same while answers flip: arXiv 2407.09141.

- Metrics of 0 and 1 get the exact test of `pipeline.gate.flips`.
- Other metrics get Student's t over clusters of documents.
- Documents that share a passage form a cluster. For metrics of 0 and 1 the counts are divided by
  the design effect (Rao & Scott 1992, Biometrics 48:577) and rounded conservatively. The t over
  clusters must agree.
- A perplexity is no mean over documents. The contribution of each is linearised (delta method).
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

# lm-eval's metrics that sum a log-likelihood and a length over documents. Each has the score as a
# function of log-likelihood per unit of length, and the derivative of this function.
RATES: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "word_perplexity": (lambda rate: exp(-rate), lambda rate: -exp(-rate)),
    "byte_perplexity": (lambda rate: exp(-rate), lambda rate: -exp(-rate)),
    "perplexity": (lambda rate: exp(-rate), lambda rate: -exp(-rate)),
    "bits_per_byte": (lambda rate: -rate / log(2), lambda rate: -1 / log(2)),
}
GROWTH = 1.1
LARGE = 20_000
"""From this number of documents on, the normal approximation replaces the exact test."""


@dataclass(frozen=True)
class PairedTask:
    """The pairs of one task. `flips` counts the documents that got worse and better.

    `variance` is that of the mean drop, over clusters. `binary` says that the metric is 0 or 1.
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
        """Return a p-value that is small when the drop is shown to be below `margin`."""
        if not self.binary:
            return self._t_below(margin)
        p_value = exact.p_below(self._effective, margin)
        return p_value if self._independent else max(p_value, self._t_below(margin))

    def p_above(self, margin: float) -> float:
        """Return a p-value that is small when the drop is shown to be above `margin`."""
        return self.mirrored.p_below(-margin)

    def upper(self, level: float) -> float:
        """Return the largest drop that the pairs do not exclude at `level`."""
        if not self.binary:
            return self._t_upper(level)
        bound = exact.upper_bound(self._effective, level)
        return bound if self._independent else max(bound, self._t_upper(level))

    def lower(self, level: float) -> float:
        """Return the smallest drop that the pairs do not exclude at `level`."""
        return -self.mirrored.upper(level)

    @property
    def mirrored(self) -> "PairedTask":
        """The same pairs with the models exchanged."""
        return replace(self, flips=self.flips.mirrored, drop=-self.drop)

    @property
    def smooth_variance(self) -> float:
        """The variance; for metrics of 0 and 1, at least that of one more flip in each direction.

        A variance from few flips is too unsure (Bonett & Price 2012, J. Educ. Behav. Stat. 37:479).
        """
        if not self.binary:
            return self.variance
        total = self.num_documents + 2
        lost, won = self.flips.right_to_wrong + 1, self.flips.wrong_to_right + 1
        adjusted = (lost + won - (lost - won) ** 2 / total) / total**2
        return max(self.variance, adjusted * self.design_effect)

    def further_documents(self, margin: float, *, level: float, power: float) -> int | None:
        """Estimate how many more documents like these would decide about `margin`.

        The estimate starts from n = σ² (z + z')² / (margin − drop)², the sample size of a paired
        comparison. It is raised until n documents with the same shares of flips pass the test
        itself. None when the drop equals the margin.
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
        """Tell whether the drop is shown to be below the margin, or above it."""
        one_sided = self.p_below if self.drop < margin else self.p_above
        return one_sided(margin) <= level

    def scaled(self, num_documents: int) -> "PairedTask":
        """Return the pairs of `num_documents` documents with the same shares of flips."""
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
        """The flips of as many independent documents, rounded towards a larger drop."""
        total = max(1, floor(self.num_documents / self.design_effect))
        won = floor(self.flips.wrong_to_right / self.design_effect)
        lost = min(ceil(self.flips.right_to_wrong / self.design_effect), total - won)
        return Flips(total, lost, won)

    def _t_below(self, margin: float) -> float:
        gap = margin - self.drop
        if self.num_clusters < 2:
            return 1.0
        if self.variance == 0:  # no difference was seen: bound its share by the number of clusters
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
    """Pair the rows of one task: at least one, of the same documents in the same order.

    The metric is a number for each document, or one of RATES. Raises InputError for a metric that
    is not 0 or 1 when all documents are in one cluster.
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
    """Summarize drops, one for each document, with the name of the document's cluster."""
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
    """Compute the variance of the mean from each cluster's sum of deviations; 0 for one cluster."""
    count = len(sums)
    return count / max(count - 1, 1) * float((sums**2).sum()) / num_documents**2


def _design_effect(drops: Floats, sums: Floats, sizes: Floats) -> float:
    """Compute the factor by which clusters raise the variance; its maximum if no drop differs."""
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
    stored = [row.metrics[metric] for row in rows]
    # A document has a log-likelihood and a length; a plain number has length 1.
    pairs = np.array([value if isinstance(value, tuple) else (value, 1.0) for value in stored])
    log_likelihoods, lengths = pairs[:, 0], pairs[:, 1]
    score, derivative = RATES[metric]
    rate = float(log_likelihoods.sum() / lengths.sum())
    residuals = (log_likelihoods - rate * lengths) / lengths.mean()
    values: Floats = score(rate) + derivative(rate) * residuals
    return values
