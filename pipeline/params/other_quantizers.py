"""Recipes of variants that other quantizers make, and the request to their program.

A recipe with the key `backend` is one of these records. Without this key, or with `native`,
quantline's own algorithms make the variant. Options that are not named here (dampening, clipping,
the order of the columns) keep the default of the library.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.core.record import Record

NATIVE = "native"
# Backends that start on CUDA alone, and the one to take elsewhere. AutoGPTQ 0.7.1 says "Load
# pretrained model to do quantization requires CUDA available".
CUDA_ONLY = {"auto-gptq": "gptqmodel"}


class BackendWeights(Record):
    """The base class of the recipes of other quantizers."""

    group_size: Literal[16, 32, 64, 128, 256]

    @property
    def folds_scales(self) -> bool:
        """Whether input scales are folded into the previous operation, as AWQ does."""
        return False


class AutoAwqParams(BackendWeights):
    """AutoAWQ (archived): AWQ with zero points in its own gemm layout."""

    backend: Literal["autoawq"]
    format: Literal["awq"]
    num_bits: Literal[4]
    symmetric: Literal[False]

    @property
    def folds_scales(self) -> bool:
        return True


class AutoGptqParams(BackendWeights):
    """AutoGPTQ (archived): GPTQ in its own layout, on CUDA alone."""

    backend: Literal["auto-gptq"]
    format: Literal["gptq"]
    num_bits: Literal[2, 3, 4, 8]
    symmetric: bool


class GptqModelParams(BackendWeights):
    """GPTQModel, AutoGPTQ's successor: GPTQ in the same layout, on a CPU too."""

    backend: Literal["gptqmodel"]
    format: Literal["gptq"]
    num_bits: Literal[2, 3, 4, 8]
    symmetric: bool


class LlmCompressorParams(BackendWeights):
    """llm-compressor: GPTQ, or AWQ's scales and rounding to nearest, as compressed-tensors."""

    backend: Literal["llmcompressor"]
    format: Literal["compressed-tensors"]
    algorithm: Literal["awq", "gptq"]
    num_bits: Literal[3, 4, 8]
    symmetric: bool

    @property
    def folds_scales(self) -> bool:
        return self.algorithm == "awq"


class AutoRoundParams(BackendWeights):
    """AutoRound: rounding learned by signed gradient descent, `iterations` steps for each layer."""

    backend: Literal["auto-round"]
    format: Literal["awq", "gptq"]
    num_bits: Literal[2, 3, 4, 8]
    symmetric: bool
    iterations: Annotated[int, Field(gt=0)]

    @model_validator(mode="after")
    def _awq_is_4_bit(self) -> "AutoRoundParams":
        if self.format == "awq" and (self.num_bits != 4 or self.symmetric):
            raise ValueError(
                f"num_bits = {self.num_bits}, symmetric = {str(self.symmetric).lower()}: format "
                "awq holds 4 bits with zero points; take format gptq for others"
            )
        return self


BackendParams = Annotated[
    AutoAwqParams | AutoGptqParams | GptqModelParams | LlmCompressorParams | AutoRoundParams,
    Field(discriminator="backend"),
]


class BackendRequest(Record):
    """The request to `envs/peers/run_backend.py`, which runs in the environment of the backend.

    `model_dir` is the checkpoint to quantize. `token_ids_path` is a JSON list of calibration
    samples, each a list of ids. The library writes a checkpoint in its own layout into
    `output_dir`; the program writes a `BackendResult` to `result_path`.
    """

    recipe: BackendParams
    model_dir: Path
    token_ids_path: Path
    output_dir: Path
    result_path: Path
    seed: int


class BackendResult(Record):
    """The versions of the packages that made the files, by name."""

    versions: dict[str, str]


def kind_of_recipe(value: object) -> str:
    """Tell whether quantline (`native`) or another quantizer (`foreign`) makes a variant.

    `value` is its recipe, before or after validation.
    """
    if isinstance(value, dict):
        return "native" if value.get("backend", NATIVE) == NATIVE else "foreign"
    return "foreign" if isinstance(value, BackendWeights) else "native"


def without_native(value: object) -> object:
    """Remove `backend: native` from a recipe, because it is the default."""
    if isinstance(value, dict) and value.get("backend") == NATIVE:
        return {key: entry for key, entry in value.items() if key != "backend"}
    return value
