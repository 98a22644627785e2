"""Group-sequential tests: decide while documents are still being scored, at the same error rate.

Repeated tests at 5 % err in more than 5 % of all runs. Group-sequential tests share the 5 % among a
planned number of looks: when a fraction t of the documents is scored, α(t) of it may be spent (Lan
& DeMets 1983, Biometrika 70:659). The level of each look is found by integration over the outcomes
that earlier looks did not stop (Armitage, McPherson & Rowe 1969; Jennison & Turnbull 2000, ch. 19).

To use it, score the documents of every task up to the next of `look_sizes`, in the order of
`order_key`. Then ask `verdicts.next_step`, and continue with the tasks that it names. `select` gets
the same verdict from the numbers of documents alone. The levels are those of each direction by
itself; a run may also stop in the other direction, which only makes errors rarer.
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
"""The integrals end at this number of standard deviations."""


@dataclass(frozen=True)
class Look:
    """Look `number`, counted from 1, of `num_looks` at equal steps of the documents."""

    number: int
    num_looks: int
    spending: Spending

    @property
    def is_last(self) -> bool:
        return self.number == self.num_looks

    def level(self, alpha: float) -> float:
        """Return the level of this look, with which all looks together err at the rate `alpha`."""
        return levels(alpha, self.num_looks, self.spending)[self.number - 1]


ONLY_LOOK = Look(1, 1, Spending.POCOCK)


def spent(alpha: float, fraction: float, spending: Spending) -> float:
    """Compute α(t), the error rate that may be spent at the fraction t of the documents."""
    if spending is Spending.POCOCK:
        return alpha * log(1 + (e - 1) * fraction)
    return 2 * float(ndtr(ndtri(alpha / 2) / fraction**0.5))


@lru_cache(maxsize=1 << 10)
def levels(alpha: float, num_looks: int, spending: Spending) -> tuple[float, ...]:
    """Compute the one-sided level of each look; `alpha` itself when there is only one.

    The score is a Brownian motion that stops at the first boundary it passes. Its density below the
    boundary of each look is integrated by Gauss-Legendre quadrature.
    """
    if num_looks == 1:
        return (alpha,)
    step = 1 / num_looks
    nodes, node_weights = np.polynomial.legendre.leggauss(NODES)
    points, weights = np.zeros(1), np.ones(1)
    found, before = [], 0.0
    for number in range(1, num_looks + 1):
        total = spent(alpha, number * step, spending)
        boundary = _boundary(points, weights, step**0.5, total - before, far=FAR * number**0.5)
        found.append(float(ndtr(-boundary / (number * step) ** 0.5)))
        low = -FAR * (number * step) ** 0.5
        half = (boundary - low) / 2
        grid = low + half * (nodes + 1)
        moves = (grid[:, None] - points[None, :]) / step**0.5
        density = np.exp(-(moves**2) / 2) / (2 * np.pi * step) ** 0.5
        points, weights, before = grid, half * node_weights * (density @ weights), total
    return tuple(found)


def _boundary(points: Floats, weights: Floats, sd: float, chance: float, *, far: float) -> float:
    """Find the height that the next step passes with probability `chance`."""

    def excess(height: float) -> float:
        return float(weights @ ndtr((points - height) / sd)) - chance

    return float(brentq(excess, -far, far, xtol=1e-13))


def require_documents(task: str, num_documents: int, params: SequentialParams | None) -> None:
    """Raise InputError for a task with fewer documents than looks.

    Two looks at the same documents are one look, so the number of documents would not tell how much
    of the error rate is spent.
    """
    if params is not None and num_documents < params.looks:
        raise InputError(
            f"gate.sequential.looks = {params.looks}: {task} has {num_documents} documents, and "
            f"each look needs a new one; use at most {num_documents}, or sequential: null"
        )


def look_sizes(num_documents: int, num_looks: int) -> tuple[int, ...]:
    """Return the number of a task's documents at each look, in rising order; the last is all.

    The numbers differ when there are at least as many documents as looks (`require_documents`).
    """
    return tuple(ceil(number * num_documents / num_looks) for number in range(1, num_looks + 1))


def look_of(number: int, params: SequentialParams | None) -> Look:
    """Return the look `number`; without parameters there is only one look."""
    return Look(number, params.looks, params.spending) if params else ONLY_LOOK


def sizes_so_far(
    num_scored: int, num_documents: int, params: SequentialParams | None
) -> tuple[int, ...]:
    """Return the numbers of documents of the looks so far, the last of which is `num_scored`.

    Raises InputError for a number at which no look is planned.
    """
    sizes = look_sizes(num_documents, params.looks if params else 1)
    if num_scored not in sizes:
        raise InputError(
            f"{num_scored} of {num_documents} documents were scored; expected "
            f"{' or '.join(map(str, sizes))}, as gate.sequential says"
        )
    return sizes[: sizes.index(num_scored) + 1]


def ordered(rows: Sequence[DocumentRecord]) -> list[DocumentRecord]:
    """Sort a task's rows in the order of a sequential evaluation: by a hash of their cluster.

    Files are often sorted by subject or difficulty. The hash order is as good as a random one, is
    the same on every machine, and keeps the documents of a passage together.
    """
    return sorted(rows, key=lambda row: (order_key(row.cluster), row.doc_id, row.doc_hash))


def order_key(cluster: str) -> str:
    """Return the sha256 of a cluster's name, in hex, by which documents are sorted."""
    return hashlib.sha256(cluster.encode()).hexdigest()
