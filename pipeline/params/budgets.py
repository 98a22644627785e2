"""Budgets of a variant: how large it may be, where that decides the bits of each tensor."""

from typing import Annotated, Any, TypeVar

from pydantic import Discriminator, Field, Tag, ValidationInfo
from pydantic_core import PydanticCustomError

from pipeline.core.record import Record
from pipeline.params.fields import PositiveInt, matching

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 1 << 20, "GiB": 1 << 30}
SIZE = rf"\d+(\.\d+)? ?({'|'.join(UNITS)})"
Value = TypeVar("Value")
# The kinds of budgets, by the key that tells them apart.
TAGS = {"size": "of-size", "bits_per_weight": "of-bits", "fits": "of-memory"}
SizeText = Annotated[str, matching(SIZE, "a size, such as 4.2 GB or 900 MiB")]


def size_bytes(text: str) -> int:
    """Return the bytes of a size: `4.2 GB` is 4,200,000,000."""
    unit = next(unit for unit in UNITS if text.endswith(unit))
    return round(float(text.removesuffix(unit)) * UNITS[unit])


class SizeBudget(Record):
    """The size of the file."""

    size: SizeText


class BitsBudget(Record):
    """The mean bits of a weight, over all weights of the model."""

    bits_per_weight: Annotated[float, Field(gt=0.0, le=16.0)]


class MemoryBudget(Record):
    """The memory that serving takes: the file, the engine, and the KV cache of all users.

    Each of `users` has a context of `context_tokens`.
    """

    fits: SizeText
    context_tokens: PositiveInt
    users: PositiveInt


def largest_bytes(budget: "Budget", num_weights: int) -> int:
    """Return the most bytes that a file of `num_weights` weights may have."""
    match budget:
        case SizeBudget():
            return size_bytes(budget.size)
        case BitsBudget():
            return int(budget.bits_per_weight * num_weights / 8)
        case MemoryBudget():
            return size_bytes(budget.fits)


def one_of_two(value: Value, info: ValidationInfo, *, what: str, of: str) -> Value:
    """Return the value of a field that stands instead of `budget`, which is read before it.

    Raises the errors of pydantic where both are there or neither.
    """
    has_budget = info.data.get("budget") is not None
    if value is None and not has_budget and "budget" in info.data:
        raise PydanticCustomError("missing", "Field required")
    if value is not None and has_budget:
        raise ValueError(f"a budget decides the {what} of each {of}; leave out one of the two")
    return value


def _kind_of_budget(value: Any) -> str | None:
    """Return the tag of the kind whose key is there; None where there is none."""
    keys = value if isinstance(value, dict) else vars(value) if isinstance(value, Record) else ()
    return next((tag for key, tag in TAGS.items() if key in keys), None)


Budget = Annotated[
    Annotated[SizeBudget, Tag(TAGS["size"])]
    | Annotated[BitsBudget, Tag(TAGS["bits_per_weight"])]
    | Annotated[MemoryBudget, Tag(TAGS["fits"])],
    Discriminator(
        _kind_of_budget,
        custom_error_type="budget",
        custom_error_message="expected size, bits_per_weight, or fits with context_tokens and "
        "users",
    ),
]
