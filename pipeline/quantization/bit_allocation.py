"""Choose a type for each part of a model, so that the predicted loss is least under a budget.

It is the multiple-choice knapsack problem: each part takes one of its choices, the bytes are
limited, and losses add up. HiGHS solves it as an integer program, with a bound on what any other
choice could gain.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from pipeline.core.errors import FailureError, InputError
from pipeline.core.formatting import bytes_text
from pipeline.core.progress import note
from pipeline.params.budgets import BitsBudget, Budget, MemoryBudget, largest_bytes
from pipeline.records.variant import BitAllocation, PredictedLoss
from pipeline.serving.kv_cache import kv_bytes_of_config

# The solver stops when its solution is within this share of its bound.
LARGEST_GAP = 1e-3
TIME_LIMIT_S = 60.0
CURVE_POINTS = 12
KV_BYTES_PER_VALUE = 2.0  # the default of engines is 16 bits


@dataclass(frozen=True)
class Choice:
    """A type that a part can have: its bytes, and the loss that it is predicted to cause."""

    type: str
    num_bytes: int
    loss: float


@dataclass(frozen=True)
class Allocation:
    """The choice of each part, by name. No other allocation has a loss below `least_loss`."""

    chosen: Mapping[str, Choice]
    least_loss: float

    @property
    def num_bytes(self) -> int:
        return sum(choice.num_bytes for choice in self.chosen.values())

    @property
    def loss(self) -> float:
        return sum(choice.loss for choice in self.chosen.values())


def require_possible(sizes: Mapping[str, Collection[int]], num_bytes: int, *, what: str) -> None:
    """Raise InputError about `what` where the smallest sizes of all parts exceed a budget."""
    smallest = sum(map(min, sizes.values()))
    if smallest > num_bytes:
        raise InputError(
            f"{what}: leaves {bytes_text(max(num_bytes, 0))} for the weights, and the smallest "
            f"types take {bytes_text(smallest)}; state a larger budget"
        )


def allocate(choices: Mapping[str, Sequence[Choice]], num_bytes: int, *, what: str) -> Allocation:
    """Choose one of the choices of each part, at most `num_bytes` together.

    Raises InputError about `what` where even the smallest choices are larger.
    """
    sizes = {part: [choice.num_bytes for choice in own] for part, own in choices.items()}
    require_possible(sizes, num_bytes, what=what)
    flat = [choice for of_part in choices.values() for choice in of_part]
    part_of = [number for number, of_part in enumerate(choices.values()) for _ in of_part]
    losses = np.array([choice.loss for choice in flat])
    bytes_of = np.array([choice.num_bytes for choice in flat], np.float64)
    one_each = csr_array((np.ones(len(flat)), (part_of, np.arange(len(flat)))))
    unit = losses.max(initial=0.0) or 1.0
    found = milp(
        losses / unit,
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(bytes_of[None] / num_bytes, -np.inf, 1),
        ],
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": LARGEST_GAP, "time_limit": TIME_LIMIT_S},
    )
    if found.x is None:
        raise FailureError(f"{what}: no types found for it: {found.message}")
    taken = (choice for choice, share in zip(flat, found.x, strict=True) if share > 0.5)
    return Allocation(dict(zip(choices, taken, strict=True)), float(found.mip_dual_bound * unit))


def weight_bytes(
    budget: Budget,
    *,
    num_weights: int,
    header_bytes: int,
    engine_bytes: int,
    config: Mapping[str, object],
) -> int:
    """Compute the bytes that a budget leaves for the tensors of the files.

    `header_bytes` are those of the files beside their tensors, `engine_bytes` the engine's own
    memory, and `config` has the values of config.json.
    """
    most = largest_bytes(budget, num_weights)
    if isinstance(budget, BitsBudget):
        return most
    if isinstance(budget, MemoryBudget):
        num_tokens = budget.context_tokens * budget.users
        most -= kv_bytes_of_config(config, num_tokens, bytes_per_value=KV_BYTES_PER_VALUE)
        most -= engine_bytes
    return most - header_bytes


def allocation_record(
    allocation: Allocation, choices: Mapping[str, Sequence[Choice]], num_bytes: int
) -> BitAllocation:
    """Describe an allocation under a budget of `num_bytes`, and say what it is in a line."""
    note(
        f"quantize: {allocation.num_bytes / num_bytes:.1%} of the budget is used; predicted KL "
        f"{allocation.loss:.4f} nats per token"
    )
    return BitAllocation(
        budget=num_bytes,
        chosen=PredictedLoss(num_bytes=allocation.num_bytes, predicted_kl=allocation.loss),
        least_kl=allocation.least_loss,
        curve=tuple(
            PredictedLoss(num_bytes=point.num_bytes, predicted_kl=point.loss)
            for point in curve_of(choices, num_points=CURVE_POINTS)
        ),
    )


def curve_of(choices: Mapping[str, Sequence[Choice]], *, num_points: int) -> list[Allocation]:
    """List the best allocations for sizes from the smallest to the largest, evenly apart."""
    smallest, largest = (
        sum(end(choice.num_bytes for choice in of_part) for of_part in choices.values())
        for end in (min, max)
    )
    step = (largest - smallest) / (num_points - 1)
    return [
        allocate(choices, round(smallest + number * step), what="curve")
        for number in range(num_points)
    ]
