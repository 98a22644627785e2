"""Other quantizers that may make a variant: what each can do, and what its program is asked for.

A recipe with the key `backend` is one of these records; without it, or with `native`, quantline's
own algorithms make the variant. What a library decides by itself (dampening, clipping, the order
of the columns) stays at its own default: the point of a backend is to be that library.
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
    """What all backends share; a kind of recipe for each of them follows."""

    group_size: Literal[16, 32, 64, 128, 256]

    @property
    def folds_scales(self) -> bool:
        """Whether scales of the inputs are folded into the operation before, as AWQ does."""
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
    """What `envs/peers/run_backend.py` is told, in the environment of the backend.

    `model_dir` is the checkpoint to quantize. `token_ids_path` is a JSON list of calibration
    samples, each a list of ids. The library writes its own kind of checkpoint into `output_dir`
    and the versions it ran with into `result_path`, a `BackendResult`.
    """

    recipe: BackendParams
    model_dir: Path
    token_ids_path: Path
    output_dir: Path
    result_path: Path
    seed: int


class BackendResult(Record):
    """The versions of what made the files, by package."""

    versions: dict[str, str]


def kind_of_recipe(value: object) -> str:
    """`native` or `foreign`: who makes the variant that a recipe, checked or not, describes."""
    if isinstance(value, dict):
        return "native" if value.get("backend", NATIVE) == NATIVE else "foreign"
    return "foreign" if isinstance(value, BackendWeights) else "native"


def without_native(value: object) -> object:
    """A recipe without `backend: native`, which says what its absence says."""
    if isinstance(value, dict) and value.get("backend") == NATIVE:
        return {key: it for key, it in value.items() if key != "backend"}
    return value
