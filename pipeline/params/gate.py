"""The parameters of select, `gate:` in `params.yaml`: what is asked of variants, and their uses."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, field_validator

from pipeline.core.record import Record
from pipeline.params.fields import Text


class Spending(StrEnum):
    """How a sequential evaluation shares its error among looks (Lan & DeMets 1983).

    `pocock` stops early more often, `obrien_fleming` keeps nearly all of it for the last look.
    """

    POCOCK = "pocock"
    OBRIEN_FLEMING = "obrien_fleming"


class SequentialParams(Record):
    """Documents are scored in `looks` equal parts, until the verdict is clear."""

    looks: Annotated[int, Field(ge=2, le=20)]
    spending: Spending


class GateClass(Record):
    """What is asked of variants whose quantized tensors have at least `min_bits` per weight.

    `margin_factor` scales the margin of each task; `max_mean_drop` is the margin of the mean over
    tasks. KL is the mean over tokens in nats, the perplexity ratio is variant ÷ base.
    """

    min_bits: Annotated[float, Field(ge=0.0)]
    margin_factor: Annotated[float, Field(gt=0.0)]
    max_mean_drop: Annotated[float, Field(gt=0.0)]
    max_kl: Annotated[float, Field(gt=0.0)]
    max_perplexity_ratio: Annotated[float, Field(ge=1.0)]


class Objective(StrEnum):
    """What a profile wants the best of: least KL, size, latency and cost, most throughput."""

    QUALITY = "quality"
    SIZE = "size"
    THROUGHPUT = "throughput"
    LATENCY = "latency"
    COST = "cost"


class ProfileParams(Record):
    """A use, for which one approved variant is chosen: the best of those in `formats`.

    `max_size_ratio` limits the size of the weights as a share of the base's; null: any size.
    """

    formats: Annotated[tuple[Text, ...], Field(min_length=1)]
    best: Objective
    max_size_ratio: Annotated[float, Field(gt=0.0)] | None


class GateParams(Record):
    """What a variant must show to be approved.

    `error_rate` is how often a wrong approval, and a wrong rejection, may happen at most; `power`
    is the chance that the further documents which an open verdict asks for decide it. `margin` is
    that of tasks to which `eval/suites.yaml` gives none, a difference of the metric. `classes` are
    by falling `min_bits`: a variant belongs to the first that it reaches.
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
        bits = [it.min_bits for it in value.values()]
        if not bits or bits != sorted(set(bits), reverse=True) or bits[-1] != 0:
            raise ValueError("expected classes by falling min_bits, the last one 0")
        return value

    def class_of(self, bits_per_weight: float) -> str:
        """The name of the class of a variant."""
        return next(name for name, it in self.classes.items() if bits_per_weight >= it.min_bits)
