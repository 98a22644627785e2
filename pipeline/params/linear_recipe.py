"""How one linear is quantized: what a variant's parameters come to for its shape.

`pipeline.quantization.grouping` makes one for each linear; everything after it reads no other.
"""

from dataclasses import dataclass, field

from pipeline.params.variants import PackedLayout, Rounding


@dataclass(frozen=True, kw_only=True)
class GroupScheme:
    """The numbers that the weights of one linear can become.

    `group_size` inputs share a scale: it divides the inputs of the linear, and is all of them where
    each output channel has one scale.
    """

    num_bits: int
    group_size: int
    symmetric: bool


@dataclass(frozen=True, kw_only=True)
class LinearRecipe(GroupScheme):
    """How one linear is quantized and stored; the searches are those of `PackedParams`.

    `reason` says why its groups are smaller than the variant asks for.
    """

    layout: PackedLayout
    clip_search: bool
    rounding: Rounding
    refine_sweeps: int
    dampening_frac: float
    reason: str | None = field(default=None, compare=False)
