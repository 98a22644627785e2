"""Simulate how often the gate errs: `python -m benchmarks.gate_simulation`.

Documents are drawn with known probabilities of turning from right to wrong and back, and the gate's
own functions decide on them. No model is involved. It takes a few minutes on one core.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom

from benchmarks.result import Row, publish
from pipeline.gate.drops import (
    MEAN,
    Progress,
    Step,
    after_look,
    combined,
    drop_tests,
    drop_verdicts,
)
from pipeline.gate.flips import Flips
from pipeline.gate.paired import PairedTask, from_drops
from pipeline.gate.sequential import look_sizes
from pipeline.params.gate import SequentialParams, Spending
from pipeline.records.selection import Verdict

RUNS = 10_000
SEED = 0
ERROR_RATE = 0.05
MARGIN = 0.05
TIGHT_MARGIN = 0.03
MEAN_MARGIN = 0.02
NUM_DOCUMENTS = 600
NUM_LOOKS = 5
SHARE_WON = 0.02
"""The share of documents that turn from wrong to right. As many turn back where the drop is 0."""
SHARES_WON = (0.0, 0.005, SHARE_WON, 0.06)

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Point:
    """The true drop of one task, and the share of its documents that turn from wrong to right."""

    drop: float
    share_won: float = SHARE_WON

    def draw(self, generator: np.random.Generator, sizes: Iterable[int], runs: int) -> Counts:
        """Draw losses and gains at each of the rising sizes, [runs, sizes, 2]."""
        chances = (self.share_won + self.drop, self.share_won, 1 - 2 * self.share_won - self.drop)
        steps = np.diff([0, *sizes])
        parts = [generator.multinomial(step, chances, runs)[:, :2] for step in steps]
        return np.stack(parts, axis=1).cumsum(axis=1)


def generator_of(points: list[Point], number: int) -> np.random.Generator:
    """Make a random generator with a stream of its own for each simulation."""
    parts = [round(1e6 * chance) for point in points for chance in (point.drop, point.share_won)]
    return np.random.default_rng([SEED, number, *parts])


def pairs(num_documents: int, lost: int, won: int) -> PairedTask:
    """Make the paired result of a task with so many losses and gains."""
    drop = (lost - won) / num_documents
    variance = (lost + won - num_documents * drop**2) / num_documents / (num_documents - 1)
    return PairedTask(Flips(num_documents, lost, won), drop, variance, True, num_documents, 1.0)


def verdicts(points: list[Point], num_documents: int, runs: int) -> list[Verdict]:
    """Simulate verdicts of a whole variant, with all documents of each run scored at once."""
    generator = generator_of(points, num_documents)
    counts = [point.draw(generator, [num_documents], runs)[:, 0] for point in points]
    margins = margins_of(points, MARGIN)
    found = []
    for run in range(runs):
        history = {
            str(task): [pairs(num_documents, *flips[run])] for task, flips in enumerate(counts)
        }
        judged = drop_verdicts(drop_tests(history, margins, None), ERROR_RATE)
        found.append(combined(judged.values()))
    return found


def sequential(
    points: list[Point], spending: Spending, runs: int, *, margin: float = MARGIN
) -> tuple[list[Progress], list[float]]:
    """Return how each run ended, and the share of the documents that it scored."""
    generator = generator_of(points, NUM_LOOKS)
    sizes = look_sizes(NUM_DOCUMENTS, NUM_LOOKS)
    counts = [point.draw(generator, sizes, runs) for point in points]
    margins = margins_of(points, margin)
    params = SequentialParams(looks=NUM_LOOKS, spending=spending)
    ends, shares = [], []
    for run in range(runs):
        history: dict[str, list[PairedTask]] = {str(task): [] for task in range(len(points))}
        step = Step(Progress.CONTINUE, tuple(history))
        while step.open_tasks:
            for task in step.open_tasks:
                look = len(history[task])
                history[task].append(pairs(sizes[look], *counts[int(task)][run, look]))
            step = after_look(history, margins, params, ERROR_RATE)
        taken = sum(looks[-1].num_documents for looks in history.values())
        ends.append(step.progress)
        shares.append(taken / NUM_DOCUMENTS / len(points))
    return ends, shares


def margins_of(points: list[Point], margin: float) -> dict[str, float]:
    return {str(task): margin for task in range(len(points))} | {MEAN: MEAN_MARGIN}


def clustered_approvals(runs: int) -> int:
    """Simulate passages of four documents that turn together, at a true drop equal to the margin.

    Returns the number of wrong approvals.
    """
    generator = np.random.default_rng(SEED)
    clusters = [str(number // 4) for number in range(NUM_DOCUMENTS)]
    approved = 0
    for _ in range(runs):
        draws = generator.random(NUM_DOCUMENTS // 4)
        turned = np.where(draws < SHARE_WON + MARGIN, 1.0, np.where(draws > 1 - SHARE_WON, -1.0, 0))
        task = from_drops(np.repeat(turned, 4), clusters, binary=True)
        approved += task.p_below(MARGIN) <= ERROR_RATE
    return approved


def share(key: str, hits: int, runs: int) -> Row:
    """Compute a share in percent, with its exact 95 % interval (Clopper & Pearson)."""
    low = float(beta.ppf(0.025, hits, runs - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, runs - hits)) if hits < runs else 1.0
    return Row(key, 100 * hits / runs, 100 * low, 100 * high, "%")


def mean_share(key: str, shares: list[float]) -> Row:
    """Compute the mean share of documents in percent, with its 95 % interval."""
    error = 1.96 * float(np.std(shares, ddof=1)) / len(shares) ** 0.5
    mean = float(np.mean(shares))
    return Row(key, 100 * mean, 100 * (mean - error), 100 * (mean + error), "% of documents")


def approvals(points: list[Point], runs: int, *, num_documents: int = NUM_DOCUMENTS) -> int:
    return verdicts(points, num_documents, runs).count(Verdict.APPROVED)


def fixed_rows(runs: int) -> list[Row]:
    """Simulate errors of both kinds when all documents are scored at once."""
    fine = [Point(0.0, 0.005)] * 7
    points = list(product(SHARES_WON, (NUM_DOCUMENTS // 4, NUM_DOCUMENTS)))
    everywhere = [approvals([Point(MARGIN, won)], runs, num_documents=n) for won, n in points]
    exactly = [exact_error(n, MARGIN, won) for won, n in points]
    rejected = verdicts([Point(MEAN_MARGIN)] * 8, NUM_DOCUMENTS, runs).count(Verdict.REJECTED)
    return [
        share("false_approval_1_task", approvals([Point(MARGIN)], runs), runs),
        share("false_approval_8_tasks", approvals([Point(MARGIN), *fine], runs), runs),
        share("false_approval_clustered", clustered_approvals(runs), runs),
        share("false_approval_largest_simulated", max(everywhere), runs),
        Row("false_approval_largest_exact", 100 * max(exactly), None, None, "%"),
        share("false_rejection_8_tasks", rejected, runs),
    ]


def exact_error(num_documents: int, margin: float, share_won: float) -> float:
    """Compute the probability of a wrong approval exactly, as a sum over all outcomes."""
    total = 0.0
    for won in range(int(binom.ppf(1 - 1e-9, num_documents, share_won)) + 1):
        most = most_losses(num_documents, won, margin)
        chance = (share_won + margin) / (1 - share_won)
        total += binom.pmf(won, num_documents, share_won) * binom.cdf(
            most, num_documents - won, chance
        )
    return float(total)


def most_losses(num_documents: int, won: int, margin: float) -> int:
    """Find the most losses that are approved beside a number of gains; -1 for none."""
    low, high = -1, num_documents - won + 1
    while high - low > 1:
        middle = (low + high) // 2
        approved = pairs(num_documents, middle, won).p_below(margin) <= ERROR_RATE
        low, high = (middle, high) if approved else (low, middle)
    return low


def sequential_rows(runs: int) -> list[Row]:
    """Simulate errors, power and the share of scored documents of sequential evaluations.

    The last two rows are of O'Brien-Fleming spending, for comparison with the default's.
    """
    spending = Spending.POCOCK
    wrong = [
        sequential([Point(MARGIN, won)], spending, runs)[0].count(Progress.CLEAR_PASS)
        for won in SHARES_WON
    ]
    wrong_of_8 = sequential([Point(MARGIN), *[Point(0.0, 0.005)] * 7], spending, runs)[0]
    ends, none = sequential([Point(0.0)], spending, runs)
    three = sequential([Point(3 * MARGIN)], spending, runs)[1]
    late_ends, late = sequential([Point(0.0)], Spending.OBRIEN_FLEMING, runs)
    tight_ends, tight = sequential([Point(0.0)], spending, runs, margin=TIGHT_MARGIN)
    return [
        share("sequential_false_approval", wrong[SHARES_WON.index(SHARE_WON)], runs),
        share("sequential_false_approval_largest", max(wrong), runs),
        share("sequential_false_approval_8_tasks", wrong_of_8.count(Progress.CLEAR_PASS), runs),
        mean_share("sequential_documents_share", max(none, three, key=np.mean)),
        mean_share("sequential_documents_share_no_drop", none),
        mean_share("sequential_documents_share_three_margins", three),
        mean_share(
            "sequential_documents_share_8_tasks", sequential([Point(0.0)] * 8, spending, runs)[1]
        ),
        share("sequential_power", ends.count(Progress.CLEAR_PASS), runs),
        mean_share("sequential_documents_share_tight_margin", tight),
        share("sequential_power_tight_margin", tight_ends.count(Progress.CLEAR_PASS), runs),
        mean_share("obrien_fleming_documents_share_no_drop", late),
        share("obrien_fleming_power", late_ends.count(Progress.CLEAR_PASS), runs),
    ]


def power_rows(runs: int) -> list[Row]:
    """Simulate how often a variant without a loss is approved, by number of documents."""
    return [
        share(f"power_{n}_documents", approvals([Point(0.0)], runs, num_documents=n), runs)
        for n in (75, 150, 300, 600, 1200)
    ]


def main(runs: int = RUNS) -> None:
    steps: list[Callable[[int], list[Row]]] = [fixed_rows, sequential_rows, power_rows]
    rows = [row for step in steps for row in step(runs)]
    publish(
        "gate_simulation",
        rows,
        notes=[
            f"{runs} runs a point, seed {SEED}; margin {MARGIN:g} and {NUM_DOCUMENTS} documents a "
            f"task unless said; {200 * SHARE_WON:g} % of documents turn where nothing is lost.",
            "false_approval: one task's true drop equals its margin, the others lose nothing. "
            f"largest: of gains of {SHARES_WON} and of {NUM_DOCUMENTS // 4} and {NUM_DOCUMENTS} "
            "documents; the exact one sums the probabilities of all outcomes.",
            "false_approval_clustered: passages of four documents that turn together.",
            "false_rejection_8_tasks: every drop equals the margin of the mean.",
            f"sequential: {NUM_LOOKS} looks, Pocock-like spending; documents_share is the larger "
            f"of no drop and three margins; the tight margin is {TIGHT_MARGIN:g}.",
        ],
    )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
