"""Test while documents are still being scored, with the error rate that was promised.

Repeated tests at 5 % err more often than that. Group-sequential tests share the 5 %
among a planned number of looks: by the time a fraction t of the documents is in, α(t) of it may be
spent (Lan & DeMets 1983, Biometrika 70:659). The level of each look follows by integrating over
what earlier looks let through (Armitage, McPherson & Rowe 1969; Jennison & Turnbull 2000, ch. 19).

How to use it: score the documents of every task up to the next of `look_sizes`, in the order of
`order_key`, ask `gate.next_step`, and go on with the tasks that it names. `select` gets the same
verdict from the numbers of documents alone. Levels are those of each direction by itself; that a
run may also stop for the other one only makes errors rarer.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, e, log

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from pipeline.core.errors import InputError
from pipeline.params.gate import SequentialParams, Spending
from pipeline.records.evaluation import DocumentRecord

Floats = npt.NDArray[np.float64]

NODES = 128
FAR = 9.0
"""Number of standard deviations beyond which nothing is integrated."""


@dataclass(frozen=True)
class Look:
    """Name look `number` (from 1) of `num_looks` at equal steps of the documents."""

    number: int
    num_looks: int
    spending: Spending

    @property
    def is_last(self) -> bool:
        return self.number == self.num_looks

    def level(self, alpha: float) -> float:
        """Return the level of this look, so that all looks together err with `alpha`."""
        return levels(alpha, self.num_looks, self.spending)[self.number - 1]


ONLY_LOOK = Look(1, 1, Spending.POCOCK)


def spent(alpha: float, fraction: float, spending: Spending) -> float:
    """Return α(t), the error rate that may be spent at `fraction` of the documents."""
    if spending is Spending.POCOCK:
        return alpha * log(1 + (e - 1) * fraction)
    return 2 * float(ndtr(ndtri(alpha / 2) / fraction**0.5))


@lru_cache(maxsize=1 << 10)
def levels(alpha: float, num_looks: int, spending: Spending) -> tuple[float, ...]:
    """Return the one-sided level of each look; `alpha` itself when there is only one.

    Between looks the score is a Brownian motion, of which only what stayed below every earlier
    boundary goes on. Gauss-Legendre quadrature.
    """
    if num_looks == 1:
        return (alpha,)
    step = 1 / num_looks
    points, weights = np.zeros(1), np.ones(1)
    found, before = [], 0.0
    for number in range(1, num_looks + 1):
        total = spent(alpha, number * step, spending)
        boundary = _boundary(points, weights, step**0.5, total - before, far=FAR * number**0.5)
        found.append(float(ndtr(-boundary / (number * step) ** 0.5)))
        grid, sizes = _quadrature(-FAR * (number * step) ** 0.5, boundary)
        moves = (grid[:, None] - points[None, :]) / step**0.5
        density = np.exp(-(moves**2) / 2) / (2 * np.pi * step) ** 0.5
        points, weights, before = grid, sizes * (density @ weights), total
    return tuple(found)


def _boundary(points: Floats, weights: Floats, sd: float, chance: float, *, far: float) -> float:
    """Return the height that the next step passes with probability `chance`."""

    def excess(height: float) -> float:
        return float(weights @ ndtr((points - height) / sd)) - chance

    return float(brentq(excess, -far, far, xtol=1e-13))


def _quadrature(low: float, high: float) -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    half = (high - low) / 2
    return low + half * (nodes + 1), half * weights


def require_documents(task: str, num_documents: int, params: SequentialParams | None) -> None:
    """Raise InputError for a task that has no new document for each look.

    Two looks at the same documents are one look: their number would not tell how much of the error
    rate is spent.
    """
    if params is not None and num_documents < params.looks:
        raise InputError(
            f"gate.sequential.looks = {params.looks}: {task} has {num_documents} documents, and "
            f"each look needs a new one; use at most {num_documents}, or sequential: null"
        )


def look_sizes(num_documents: int, num_looks: int) -> tuple[int, ...]:
    """Return after how many of a task's documents to look, in rising order; the last is all.

    No size comes twice when there is a document for each look (`require_documents`).
    """
    return tuple(ceil(number * num_documents / num_looks) for number in range(1, num_looks + 1))


def look_of(number: int, params: SequentialParams | None) -> Look:
    """Return the look of that number; without parameters there is only one."""
    return Look(number, params.looks, params.spending) if params else ONLY_LOOK


def sizes_so_far(
    num_scored: int, num_documents: int, params: SequentialParams | None
) -> tuple[int, ...]:
    """Return the sizes of the looks so far at a task with `num_scored` of `num_documents`.

    Raises InputError for a number at which no look was planned.
    """
    sizes = look_sizes(num_documents, params.looks if params else 1)
    if num_scored not in sizes:
        raise InputError(
            f"{num_scored} of {num_documents} documents were scored; expected "
            f"{' or '.join(map(str, sizes))}, as gate.sequential says"
        )
    return sizes[: sizes.index(num_scored) + 1]


def ordered(rows: Sequence[DocumentRecord]) -> list[DocumentRecord]:
    """Sort a task's rows in the order in which a sequential evaluation takes them.

    Files are often sorted, by subject or by difficulty; a sum of the cluster's name is as good as
    chance, the same everywhere, and keeps a passage together.
    """
    return sorted(rows, key=lambda row: (order_key(row.cluster), row.doc_id, row.doc_hash))


def order_key(cluster: str) -> str:
    return hashlib.sha256(cluster.encode()).hexdigest()
