"""The section `gate` of `params.yaml`: the limits that variants must keep, and profiles of use."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, field_validator

from pipeline.core.record import Record
from pipeline.params.fields import Text


class Spending(StrEnum):
    """The alpha spending function of a sequential evaluation (Lan & DeMets 1983).

    `pocock` stops early more often; `obrien_fleming` keeps nearly all of the error for the last
    look.
    """

    POCOCK = "pocock"
    OBRIEN_FLEMING = "obrien_fleming"


class SequentialParams(Record):
    """A sequential evaluation: documents are scored in `looks` equal parts until a verdict."""

    looks: Annotated[int, Field(ge=2, le=20)]
    spending: Spending


class GateClass(Record):
    """The limits for variants whose quantized tensors have at least `min_bits` per weight.

    `margin_factor` scales the margin of each task. `max_mean_drop` is the margin of the mean over
    tasks. `max_kl` limits the mean KL over tokens, in nats; `max_perplexity_ratio` limits the
    perplexity of the variant ÷ that of the base.
    """

    min_bits: Annotated[float, Field(ge=0.0)]
    margin_factor: Annotated[float, Field(gt=0.0)]
    max_mean_drop: Annotated[float, Field(gt=0.0)]
    max_kl: Annotated[float, Field(gt=0.0)]
    max_perplexity_ratio: Annotated[float, Field(ge=1.0)]


class Objective(StrEnum):
    """The figure that a profile optimizes: lowest KL, size, latency or cost; highest throughput."""

    QUALITY = "quality"
    SIZE = "size"
    THROUGHPUT = "throughput"
    LATENCY = "latency"
    COST = "cost"


class ProfileParams(Record):
    """A profile of use: `select` chooses the approved variant in `formats` that is `best` for it.

    `max_size_ratio` limits the bytes of the weights ÷ those of the base; null sets no limit.
    """

    formats: Annotated[tuple[Text, ...], Field(min_length=1)]
    best: Objective
    max_size_ratio: Annotated[float, Field(gt=0.0)] | None


class GateParams(Record):
    """The rules by which a variant is approved.

    `error_rate` is the highest probability of a wrong approval, and of a wrong rejection. `power`
    is the probability that the further documents which an inconclusive verdict asks for decide it.
    `margin`, a difference of the metric, is for tasks to which `eval/suites.yaml` gives none.
    `classes` are sorted by falling `min_bits`: a variant belongs to the first that it reaches.
    """

    error_rate: Annotated[float, Field(gt=0.0, lt=0.5)]
    power: Annotated[float, Field(gt=0.5, lt=1.0)]
    margin: Annotated[float, Field(gt=0.0)]
    classes: dict[str, GateClass]
    sequential: SequentialParams | None
    profiles: dict[str, ProfileParams]

    @field_validator("classes")
    @classmethod
    def _falling_to_zero(cls, value: dict[str, GateClass]) -> dict[str, GateClass]:
        bits = [gate_class.min_bits for gate_class in value.values()]
        if not bits or bits != sorted(set(bits), reverse=True) or bits[-1] != 0:
            raise ValueError("expected classes by falling min_bits, the last one 0")
        return value

    def class_of(self, bits_per_weight: float) -> str:
        """Return the name of the class of a variant with so many bits per weight."""
        return next(
            name for name, limits in self.classes.items() if bits_per_weight >= limits.min_bits
        )
