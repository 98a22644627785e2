"""The kinds of variants: one entry under `variants` in `params.yaml` each.

The format (how a file is laid out) and the algorithm (how its integers are found) are separate:
each packed format can be filled by any of the algorithms that fit it.
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
from pipeline.params.other_quantizers import BackendParams, kind_of_recipe, without_native

PositiveInt = Annotated[int, Field(gt=0)]
# A step of alignment reads so many tokens, and keeps what it needs for the way back of so many at a
# time; or one sample where that is longer.
ALIGN_STEP_TOKENS = 3072
ALIGN_BATCH_TOKENS = 1024


class Rounding(StrEnum):
    """How a weight becomes an integer once its group has a scale."""

    NEAREST = "nearest"
    GPTQ = "gptq"


class OnIndivisible(StrEnum):
    """What becomes of a linear that does not divide by the group size or into whole words.

    `error` refuses the model; `smaller_group` takes the largest group size that divides (for the
    whole file where the format holds one size only); `keep` leaves the linear in the base's dtype.
    """

    ERROR = "error"
    SMALLER_GROUP = "smaller_group"
    KEEP = "keep"


GroupSize = Literal[16, 32, 64, 128, 256]


class PackedParams(Record):
    """What the packed formats share: the algorithms that fill them.

    `scale_search` folds AWQ's per-channel scales into the preceding operation, `clip_search` looks
    for the range of each group that hurts the output least, `rounding` picks the integers,
    `refine_sweeps` times integers and scales are improved in turn, `dampening_frac` is the share of
    the mean diagonal of G added to its diagonal. `quantized_inputs` lets each layer make up for
    what the layers before lost. `align_samples` calibration samples are read again, by base and
    variant, to align the integers of the whole model; 0 needs neither in memory.
    """

    scale_search: bool
    clip_search: bool
    rounding: Rounding
    refine_sweeps: Annotated[int, Field(ge=0, le=100)]
    dampening_frac: Annotated[float, Field(gt=0.0, lt=1.0)]
    quantized_inputs: bool
    align_samples: Annotated[int, Field(ge=0, le=100_000)]
    on_indivisible: OnIndivisible

    @field_validator("align_samples")
    @classmethod
    def _starts_from_the_base(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("quantized_inputs"):
            raise ValueError(
                "alignment starts from the base's weights and makes up for the layers before by "
                "itself; set quantized_inputs to false"
            )
        return value


class AwqParams(PackedParams):
    """AutoAWQ's gemm layout: asymmetric, with zero points."""

    symmetric: ClassVar[bool] = False

    format: Literal["awq"]
    num_bits: Literal[4]
    group_size: GroupSize


class GptqParams(PackedParams):
    """The GPTQ v1 layout: symmetric, which is what the engines serve fast.

    `group_size` null gives each output channel one scale.
    """

    symmetric: ClassVar[bool] = True

    format: Literal["gptq"]
    num_bits: Literal[2, 3, 4, 8]
    group_size: GroupSize | None


class Scheme(StrEnum):
    """Bits of weights and activations in a compressed-tensors file.

    Weights have integers (asymmetric where it says so) or, in FP8, e4m3 floating-point numbers.
    A16 leaves the activations alone; W8A8 and FP8_DYNAMIC round them token by token in the engine.
    """

    W4A16 = "W4A16"
    W4A16_ASYM = "W4A16_ASYM"
    W8A16 = "W8A16"
    W8A8 = "W8A8"
    FP8_DYNAMIC = "FP8_DYNAMIC"


class CompressedTensorsParams(PackedParams):
    """The layout of the compressed-tensors library, which vLLM reads first of all.

    `group_size` null gives each output channel one scale; with rounded activations nothing else is
    possible.
    """

    format: Literal["compressed-tensors"]
    scheme: Scheme
    group_size: GroupSize | None

    @property
    def num_bits(self) -> int:
        return 4 if self.scheme in (Scheme.W4A16, Scheme.W4A16_ASYM) else 8

    @property
    def symmetric(self) -> bool:
        return self.scheme is not Scheme.W4A16_ASYM

    @property
    def rounds_inputs(self) -> bool:
        return self.scheme in (Scheme.W8A8, Scheme.FP8_DYNAMIC)

    @field_validator("scheme")
    @classmethod
    def _float_is_nearest(cls, value: Scheme, info: ValidationInfo) -> Scheme:
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
    def _aligned_as_served(cls, value: Scheme, info: ValidationInfo) -> Scheme:
        if value in (Scheme.W8A8, Scheme.FP8_DYNAMIC) and info.data.get("align_samples"):
            raise ValueError("rounded activations have no gradient; set align_samples to 0")
        if value in (Scheme.W8A8, Scheme.FP8_DYNAMIC) and info.data.get("quantized_inputs"):
            raise ValueError("activations are rounded when served; set quantized_inputs to false")
        return value

    @field_validator("group_size")
    @classmethod
    def _whole_channels(cls, value: int | None, info: ValidationInfo) -> int | None:
        scheme = info.data.get("scheme")
        if value is not None and scheme in (Scheme.W8A8, Scheme.FP8_DYNAMIC):
            raise ValueError(
                f"{scheme} rounds the activations, so each output channel has one scale; "
                "expected null"
            )
        return value


class IntegerWeights(Record):
    """What the numerics need to know about one linear; `group_size` divides its inputs."""

    num_bits: PositiveInt
    group_size: PositiveInt
    scale_search: bool
    clip_search: bool
    rounding: Rounding
    refine_sweeps: int
    dampening_frac: float


class GgufType(StrEnum):
    """The llama.cpp file types this pipeline makes (`LLAMA_FTYPE_MOSTLY_…`)."""

    Q8_0 = "Q8_0"
    Q6_K = "Q6_K"
    Q5_K_M = "Q5_K_M"
    Q5_K_S = "Q5_K_S"
    Q4_K_M = "Q4_K_M"
    Q4_K_S = "Q4_K_S"
    Q4_0 = "Q4_0"
    Q3_K_L = "Q3_K_L"
    Q3_K_M = "Q3_K_M"
    Q3_K_S = "Q3_K_S"
    Q2_K = "Q2_K"
    Q2_K_S = "Q2_K_S"
    IQ4_NL = "IQ4_NL"
    IQ4_XS = "IQ4_XS"
    IQ3_M = "IQ3_M"
    IQ3_S = "IQ3_S"
    IQ3_XS = "IQ3_XS"
    IQ3_XXS = "IQ3_XXS"
    IQ2_M = "IQ2_M"
    IQ2_S = "IQ2_S"
    IQ2_XS = "IQ2_XS"
    IQ2_XXS = "IQ2_XXS"
    IQ1_M = "IQ1_M"
    IQ1_S = "IQ1_S"

    @property
    def needs_imatrix(self) -> bool:
        """Whether llama.cpp refuses to make it without an importance matrix."""
        return self.startswith(("IQ1_", "IQ2_", "IQ3_X")) or self is GgufType.Q2_K_S

    @property
    def block_weights(self) -> int:
        """Rows divide by this, or llama.cpp falls back to another type."""
        return 32 if self in (GgufType.Q8_0, GgufType.Q4_0, GgufType.IQ4_NL) else 256

    @property
    def num_bits(self) -> int:
        """Of most of its weights: the digit in its name."""
        return int(self.removeprefix("I")[1])

    @property
    def scale_group(self) -> int:
        """How many weights in a row share a scale, in most of its tensors."""
        return 16 if self.startswith(("Q2_", "Q3_", "Q6_")) else 32


class GgufParams(Record):
    """A llama.cpp file.

    `scale_search` folds AWQ's per-channel scales into the model that llama.cpp gets, `imatrix`
    hands the statistics to its quantizer.
    """

    format: Literal["gguf"]
    type: GgufType
    scale_search: bool
    imatrix: bool

    @field_validator("imatrix")
    @classmethod
    def _enough_for_the_type(cls, value: bool, info: ValidationInfo) -> bool:
        kind = info.data.get("type")
        if isinstance(kind, GgufType) and kind.needs_imatrix and not value:
            raise ValueError(f"{kind} is garbage without an importance matrix; expected true")
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
