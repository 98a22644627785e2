"""The quantization recipe of one linear: a variant's parameters, resolved for its shape.

`pipeline.quantization.grouping` makes one for each linear, and all later code reads this one.
"""

from dataclasses import dataclass, field

from pipeline.params.variants import PackedLayout, Rounding


@dataclass(frozen=True, kw_only=True)
class GroupScheme:
    """The integer grid of the weights of one linear.

    `group_size` input channels share a scale. It divides the number of input channels, and equals
    that number where each output channel has one scale.
    """

    num_bits: int
    group_size: int
    symmetric: bool


@dataclass(frozen=True, kw_only=True)
class LinearRecipe(GroupScheme):
    """How one linear is quantized and stored. `PackedParams` explains the searches.

    `per_channel` says that the file has one scale for each output channel, and no groups.
    `reason` says why its groups are smaller than the variant's `group_size`; None where they are
    not.
    """

    layout: PackedLayout
    per_channel: bool
    clip_search: bool
    rounding: Rounding
    refine_sweeps: int
    dampening_frac: float
    reason: str | None = field(default=None, compare=False)
