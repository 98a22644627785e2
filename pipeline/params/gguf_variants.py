"""The recipes of GGUF files: the entries of `variants` in `params.yaml` whose format is gguf."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline.core.record import Record
from pipeline.params.budgets import Budget, one_of_two
from pipeline.params.fields import AlignSamples

# Calibration samples by which a budget measures sensitivities, which are means over all tokens and
# outputs of a matrix; and the tokens of a batch, whose logits are in memory.
BUDGET_SAMPLES = 16
BUDGET_BATCH_TOKENS = 1024
# How often levels and scales of a GGUF file are improved in turn.
GGUF_REFINE_SWEEPS = 4


class GgufRounding(StrEnum):
    """The rounding inside the blocks of a GGUF file: that of llama.cpp, or GPTQ and refinement."""

    LLAMA_CPP = "llama.cpp"
    GPTQ = "gptq"


class GgufType(StrEnum):
    """The llama.cpp file types that quantline makes (`LLAMA_FTYPE_MOSTLY_…`)."""

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
        """Whether llama.cpp refuses to make this type without an importance matrix."""
        return self.startswith(("IQ1_", "IQ2_", "IQ3_X")) or self is GgufType.Q2_K_S

    @property
    def has_table(self) -> bool:
        """Whether most of its blocks hold numbers of a table or a codebook."""
        return self.startswith("IQ")

    @property
    def block_weights(self) -> int:
        """The number of weights in a block; other types take rows that it does not divide."""
        return 32 if self in (GgufType.Q8_0, GgufType.Q4_0, GgufType.IQ4_NL) else 256

    @property
    def num_bits(self) -> int:
        """The number of bits of most of its weights: the digit in its name."""
        return int(self.removeprefix("I")[1])

    @property
    def scale_group(self) -> int:
        """The number of weights in a row that share a scale, in most of its tensors."""
        return 16 if self.startswith(("Q2_", "Q3_", "Q6_")) else 32


class GgufParams(Record):
    """A GGUF file, written by llama.cpp.

    It has a `type`, or a `budget` that decides the type of each tensor.
    `scale_search` folds AWQ's per-channel scales into the model that llama.cpp quantizes.
    `imatrix` gives the calibration statistics to its quantizer. `rounding` says who finds the
    integers and the scales inside its blocks; those of IQ1, IQ2 and IQ3 stay llama.cpp's.
    `quantized_inputs` and `align_samples` are as in `PackedParams`.
    """

    format: Literal["gguf"]
    budget: Budget | None = None
    type: Annotated[GgufType | None, Field(validate_default=True)] = None
    scale_search: bool
    imatrix: bool
    rounding: GgufRounding
    quantized_inputs: bool
    align_samples: AlignSamples

    @property
    def label(self) -> str:
        """The name of the type; `mixed` where each tensor has its own."""
        return self.type.value if self.type else "mixed"

    @field_validator("type")
    @classmethod
    def _type_or_budget(cls, value: GgufType | None, info: ValidationInfo) -> GgufType | None:
        return one_of_two(value, info, what="type", of="tensor")

    @field_validator("quantized_inputs", "align_samples")
    @classmethod
    def _rounded_here(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("rounding") is GgufRounding.LLAMA_CPP:
            off = f"{info.field_name} to {'false' if value is True else 0}"
            raise ValueError(f"llama.cpp knows no inputs; set rounding to gptq, or {off}")
        return value

    @field_validator("align_samples")
    @classmethod
    def _plain_levels(cls, value: int, info: ValidationInfo) -> int:
        kind = info.data.get("type")
        if value and isinstance(kind, GgufType) and kind.has_table:
            raise ValueError(f"{kind} has no consecutive levels to align; set align_samples to 0")
        return value

    @field_validator("imatrix")
    @classmethod
    def _imatrix_where_needed(cls, value: bool, info: ValidationInfo) -> bool:
        kind = info.data.get("type")
        if isinstance(kind, GgufType) and kind.needs_imatrix and not value:
            raise ValueError(f"{kind} is unusable without an importance matrix; expected true")
        return value
