"""The recipes of variants: the entries of `variants` in `params.yaml`.

The format (the layout of the files) and the algorithm (the search for the integers) are
independent: a packed format can be combined with any algorithm that fits it.
"""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)

from pipeline.core.record import Record
from pipeline.params.budgets import Budget, one_of_two
from pipeline.params.fields import AlignSamples
from pipeline.params.gguf_variants import GgufParams
from pipeline.params.other_quantizers import BackendParams, kind_of_recipe, without_native

PositiveInt = Annotated[int, Field(gt=0)]
# Tokens of one step of alignment, and of the batches in it whose activations are kept for the
# backward pass; a sample that is longer is a batch of its own.
ALIGN_STEP_TOKENS = 3072
ALIGN_BATCH_TOKENS = 1024


class Rounding(StrEnum):
    """The rounding of weights to integers, once their group has a scale."""

    NEAREST = "nearest"
    GPTQ = "gptq"


class OnIndivisible(StrEnum):
    """The treatment of a linear that the group size, or the packing into words, does not divide.

    `error` refuses the model. `smaller_group` takes the largest group size that divides, for the
    whole file where the format has only one. `keep` leaves the linear in the base's dtype.
    """

    ERROR = "error"
    SMALLER_GROUP = "smaller_group"
    KEEP = "keep"


class PackedLayout(StrEnum):
    """The layout of the tensors of a packed linear; the last three are of compressed-tensors."""

    AWQ = "awq"
    GPTQ = "gptq"
    PACKED = "pack-quantized"
    INT = "int-quantized"
    FLOAT = "float-quantized"


GroupSize = Literal[16, 32, 64, 128, 256]


class PackedParams(Record):
    """The algorithms that all packed formats share.

    `scale_search` searches AWQ's per-channel scales and folds them into the previous operation.
    `clip_search` searches the range of each group with the least error of the output. `rounding`
    chooses the integers. `refine_sweeps` is how often integers and scales are improved in turn.
    `dampening_frac` of the mean diagonal of G is added to its diagonal. With `quantized_inputs`
    each layer is quantized for the outputs of the quantized layers before it, and so corrects
    their errors. `align_samples` is the number of calibration samples on which base and variant
    are run to align the integers of the whole model; 0 leaves out this step and runs neither.
    """

    scale_search: bool
    clip_search: bool
    rounding: Rounding
    refine_sweeps: Annotated[int, Field(ge=0, le=100)]
    dampening_frac: Annotated[float, Field(gt=0.0, lt=1.0)]
    quantized_inputs: bool
    align_samples: AlignSamples
    on_indivisible: OnIndivisible


class AwqParams(PackedParams):
    """AutoAWQ's gemm layout: asymmetric, with zero points."""

    layout: ClassVar[PackedLayout] = PackedLayout.AWQ
    symmetric: ClassVar[bool] = False

    format: Literal["awq"]
    num_bits: Literal[4]
    group_size: GroupSize


class GptqParams(PackedParams):
    """The GPTQ v1 layout, symmetric, for which engines have fast kernels.

    With `group_size` null each output channel has one scale.
    """

    layout: ClassVar[PackedLayout] = PackedLayout.GPTQ
    symmetric: ClassVar[bool] = True

    format: Literal["gptq"]
    num_bits: Literal[2, 3, 4, 8]
    group_size: GroupSize | None


class Scheme(StrEnum):
    """The bits of weights and activations in a compressed-tensors file.

    Weights are integers, symmetric unless the name ends in ASYM, or e4m3 floating-point numbers in
    FP8. A16 leaves the activations in 16 bits; W8A8 and FP8_DYNAMIC round them token by token in
    the engine.
    """

    W4A16 = "W4A16"
    W4A16_ASYM = "W4A16_ASYM"
    W8A16 = "W8A16"
    W8A8 = "W8A8"
    FP8_DYNAMIC = "FP8_DYNAMIC"


# What a budget chooses from for each linear, besides 16 bits, with the group size. FP8 is not among
# them: it takes the bytes of 8 bits and loses more. It tries each on so many rows of a matrix.
BUDGET_SCHEMES: tuple[tuple[Scheme, GroupSize | None], ...] = (
    (Scheme.W4A16, None),
    (Scheme.W4A16, 128),
    (Scheme.W4A16, 64),
    (Scheme.W4A16, 32),
    (Scheme.W8A16, None),
)
BUDGET_ROWS = 256


class CompressedTensorsParams(PackedParams):
    """The layout of the compressed-tensors library, vLLM's own.

    It has a `scheme`, or a `budget` that decides for each linear between 4 and 8 bits, their group
    sizes, and 16 bits. With `group_size` null each output channel has one scale. Schemes that round
    the activations allow nothing else.
    """

    format: Literal["compressed-tensors"]
    budget: Budget | None = None
    scheme: Annotated[Scheme | None, Field(validate_default=True)] = None
    group_size: GroupSize | None

    @property
    def label(self) -> str:
        """The name of the scheme; `mixed` where each linear has its own."""
        return self.scheme.value if self.scheme else "mixed"

    @property
    def layout(self) -> PackedLayout:
        if self.scheme is Scheme.W8A8:
            return PackedLayout.INT
        return PackedLayout.FLOAT if self.scheme is Scheme.FP8_DYNAMIC else PackedLayout.PACKED

    @property
    def num_bits(self) -> int:
        """The bits of a weight; the fewest where each linear has its own."""
        return 4 if self.scheme in (None, Scheme.W4A16, Scheme.W4A16_ASYM) else 8

    @property
    def symmetric(self) -> bool:
        return self.scheme is not Scheme.W4A16_ASYM

    @property
    def rounds_inputs(self) -> bool:
        return self.scheme in (Scheme.W8A8, Scheme.FP8_DYNAMIC)

    @field_validator("scheme")
    @classmethod
    def _scheme_or_budget(cls, value: Scheme | None, info: ValidationInfo) -> Scheme | None:
        return one_of_two(value, info, what="scheme", of="linear")

    @field_validator("scheme")
    @classmethod
    def _fp8_rounds_to_nearest(cls, value: Scheme, info: ValidationInfo) -> Scheme:
        searched = any(
            info.data.get(name) for name in ("scale_search", "clip_search", "refine_sweeps")
        )
        if value is Scheme.FP8_DYNAMIC and (
            searched or info.data.get("rounding") is not Rounding.NEAREST
        ):
            raise ValueError(
                "floating-point numbers are rounded to nearest; set scale_search and clip_search "
                "to false, refine_sweeps to 0 and rounding to nearest"
            )
        return value

    @field_validator("scheme")
    @classmethod
    def _rounded_activations_stay_as_served(cls, value: Scheme, info: ValidationInfo) -> Scheme:
        if value in (Scheme.W8A8, Scheme.FP8_DYNAMIC) and info.data.get("align_samples"):
            raise ValueError("rounded activations have no gradient; set align_samples to 0")
        if value in (Scheme.W8A8, Scheme.FP8_DYNAMIC) and info.data.get("quantized_inputs"):
            raise ValueError("activations are rounded when served; set quantized_inputs to false")
        return value

    @field_validator("group_size")
    @classmethod
    def _whole_channels(cls, value: int | None, info: ValidationInfo) -> int | None:
        scheme = info.data.get("scheme")
        if value is not None and info.data.get("budget") is not None:
            raise ValueError("a budget decides the groups of each linear too; expected null")
        if value is not None and scheme in (Scheme.W8A8, Scheme.FP8_DYNAMIC):
            raise ValueError(
                f"{scheme} rounds the activations, so each output channel has one scale; "
                "expected null"
            )
        return value


PackedVariant = AwqParams | GptqParams | CompressedTensorsParams
NativeParams = Annotated[
    Annotated[PackedVariant | GgufParams, Field(discriminator="format")],
    BeforeValidator(without_native),
]
VariantParams = Annotated[
    Annotated[NativeParams, Tag("native")] | Annotated[BackendParams, Tag("foreign")],
    Discriminator(kind_of_recipe),
]
