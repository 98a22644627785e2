"""The schema of `params.yaml`, which is validated before anything expensive starts.

Every value is required: the only place of a default is `params.yaml`. The sections have the names
of the stages that read them. DVC tracks the same sections, so a changed value reruns only the
stages that use it. `pipeline.params.variants` has the kinds of variants, `pipeline.params.gate` the
parameters of the gate and `pipeline.params.serving` those of serving.
"""

import re
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.core.record import Record
from pipeline.core.workspace import BASE, DATASET_DIR
from pipeline.params.fields import PositiveInt, Text, matching
from pipeline.params.gate import GateParams
from pipeline.params.gguf_variants import GgufParams, GgufType
from pipeline.params.serving import EconomicsParams, ServeParams
from pipeline.params.variants import (
    AwqParams,
    CompressedTensorsParams,
    GptqParams,
    PackedVariant,
    Rounding,
    VariantParams,
)

__all__ = [
    "AwqParams",
    "CompressedTensorsParams",
    "GgufParams",
    "GgufType",
    "GptqParams",
    "PackedVariant",
    "Rounding",
    "VariantParams",
]

DEMO_SOURCE = "demo"
LLAMA_CPP = "llama.cpp"
HUB_PREFIX = "hf:"

VARIANT_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
RELEASE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
SEMANTIC_VERSION = r"^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$"
REGISTRY_URL = r"^https?://[^/\s@]+$"
REPOSITORY = r"^[a-z0-9]+([._-][a-z0-9]+)*(/[a-z0-9]+([._-][a-z0-9]+)*)*$"


class ModelParams(Record):
    """The base checkpoint.

    `source` is `demo`, `hf:ORG/NAME@COMMIT` (40 hex digits) or a local directory. `license` names
    an entry of license-decisions.yaml, for a checkpoint whose own files leave its license open.
    `gguf_pre_tokenizer` is llama.cpp's name of the pre-tokenizer, for a BPE tokenizer that its
    converter does not recognise; else null.
    """

    source: Text
    license: Text | None
    gguf_pre_tokenizer: Text | None


class DatasetParams(Record):
    """A data set of a hub: `source` is `hf:datasets/ORG/NAME@COMMIT`.

    `files` are names of data files in it, or patterns such as `data/train-*.parquet`.
    """

    source: Text
    files: Annotated[tuple[Text, ...], Field(min_length=1)]


class CalibrationParams(Record):
    """The calibration text and the number of samples and tokens that are read from it.

    `text` is a file or a directory of files. With a `dataset` it is DATASET_DIR, where fetch puts
    the data set. `license` is that of the text: an identifier as in model cards, `own`, or an entry
    of license-decisions.yaml. `seed` draws the documents. At most the share `max_skipped` of the
    rows that are drawn may be unusable; such rows are left out.
    """

    text: Text
    dataset: DatasetParams | None
    license: Text
    max_skipped: Annotated[float, Field(ge=0, lt=1)]
    num_calibration_samples: PositiveInt
    max_seq_length: PositiveInt
    seed: Annotated[int, Field(ge=0)]


class PackedJudge(StrEnum):
    """The engine that scores AWQ, GPTQ and compressed-tensors variants, and the base beside them.

    vLLM reads the packed files; transformers gets their weights after quantline unpacked them.
    `auto` is vLLM where there is a GPU, else transformers.
    """

    AUTO = "auto"
    TRANSFORMERS = "transformers"
    VLLM = "vllm"


class EvaluateParams(Record):
    """The measurements of the base and of every variant.

    `suite` is a key of `eval/suites.yaml`. `max_documents` limits each task; null takes all. `text`
    is held-out text for KL and perplexity, read in `num_windows` windows of `window_tokens` tokens.
    `controls` are the engines that score GGUF variants; the base is scored in each of them too.
    `packed_judge` is the engine that scores the other variants.
    """

    suite: Text
    max_documents: PositiveInt | None
    text: Text
    window_tokens: Annotated[int, Field(ge=8)]
    num_windows: PositiveInt
    batch_size: PositiveInt
    controls: tuple[Literal["llama.cpp"], ...]
    packed_judge: PackedJudge


class Audience(StrEnum):
    """The people who receive a release; affiliates and the public are others than its maker."""

    INTERNAL = "internal"
    AFFILIATES = "affiliates"
    PUBLIC = "public"


class ReleaseParams(Record):
    """The name and version of the release of the approved variants, its maker and its audience.

    `commercial` is true where a company releases or uses them, or anyone earns money with them.
    `signing_key` is the file of a private elliptic-curve key in PEM; null leaves packages unsigned.
    """

    name: Annotated[
        str, matching(RELEASE_NAME, "at most 96 letters, digits, dots, dashes and underscores")
    ]
    version: Annotated[
        str,
        Field(max_length=64),
        matching(SEMANTIC_VERSION, "a semantic version such as 1.2.0 or 1.2.0-rc.1"),
    ]
    quantized_by: Text
    audience: Audience
    commercial: bool
    signing_key: Text | None


class RegistryParams(Record):
    """The registry of releases: its URL, or null for the OCI image layout under `artifacts/`."""

    url: (
        Annotated[
            str,
            matching(REGISTRY_URL, "https://HOST or http://HOST without a user, password or path"),
        ]
        | None
    )
    repository: Annotated[
        str,
        Field(max_length=255),
        matching(REPOSITORY, "a repository in lower case, such as organization/model"),
    ]


class Params(Record):
    """All of `params.yaml`."""

    model: ModelParams
    calibration: CalibrationParams
    variants: dict[str, VariantParams]
    evaluate: EvaluateParams
    gate: GateParams
    serve: ServeParams
    economics: EconomicsParams
    release: ReleaseParams
    registry: RegistryParams

    @property
    def makes_gguf(self) -> bool:
        """Whether a variant is a GGUF file, which llama.cpp alone reads."""
        return any(isinstance(recipe, GgufParams) for recipe in self.variants.values())

    @model_validator(mode="after")
    def _variant_names(self) -> "Params":
        if not self.variants:
            raise ValueError("variants: expected at least one")
        for name in self.variants:
            if not VARIANT_NAME.fullmatch(name) or len(name) > 48:
                raise ValueError(
                    f"variants.{name}: expected a name in kebab-case, such as awq-w4-g128"
                )
            if name == BASE:
                raise ValueError(f"variants.{BASE}: this name means the unquantized checkpoint")
        return self

    @model_validator(mode="after")
    def _engines_are_controlled(self) -> "Params":
        for name, recipe in self.variants.items():
            if isinstance(recipe, GgufParams) and LLAMA_CPP not in self.evaluate.controls:
                raise ValueError(
                    f"evaluate.controls: expected {LLAMA_CPP} in it, which judges {name}"
                )
        return self

    @model_validator(mode="after")
    def _endpoint_names(self) -> "Params":
        for name, endpoint in self.serve.endpoints.items():
            if name == BASE or name in self.variants:
                raise ValueError(f"serve.endpoints.{name}: the name of a variant; choose another")
            if endpoint.serves != BASE and endpoint.serves not in self.variants:
                raise ValueError(
                    f"serve.endpoints.{name}.serves = {endpoint.serves}: expected {BASE} or the "
                    "name of a variant"
                )
        return self

    @model_validator(mode="after")
    def _dataset_is_the_text(self) -> "Params":
        text = self.calibration.text
        if (self.calibration.dataset is not None) != (text == DATASET_DIR):
            raise ValueError(
                f"calibration.text = {text}: {DATASET_DIR} is where fetch puts "
                "calibration.dataset; set both, or a file of your own and dataset: null"
            )
        return self
