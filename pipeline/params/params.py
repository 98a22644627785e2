"""The parameters of a run: the form of `params.yaml`, checked before anything heavy starts.

Every value is required: a default lives in `params.yaml`, nowhere else. The sections are named
after the stages that read them; DVC watches the same sections, so a changed value redoes only the
stages that use it. The kinds of variants are in `pipeline.params.variants`, the parameters of the
gate in `pipeline.params.gate`, those of serving in `pipeline.params.serving`.
"""

import re
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.core.record import Record
from pipeline.core.workspace import BASE, DATASET_DIR
from pipeline.params.fields import PositiveInt, Text, matching
from pipeline.params.gate import GateParams
from pipeline.params.serving import EconomicsParams, ServeParams
from pipeline.params.variants import (
    AwqParams,
    CompressedTensorsParams,
    GgufParams,
    GgufType,
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
    """Which checkpoint.

    `source` is `demo`, `hf:ORG/NAME@COMMIT` (40 hex digits) or a local directory. `license` names
    an entry of license-decisions.yaml where the checkpoint's own files leave its license open.
    `gguf_pre_tokenizer` is llama.cpp's name of the pre-tokenizer for a BPE tokenizer that its
    converter does not recognise by itself, else null.
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
    """The text whose activations are measured, and how much of it. `seed` draws the documents.

    `text` is a file or a directory of them. With a `dataset`, which fetch brings there, it is
    DATASET_DIR. `license` is that of the data: an identifier as in model cards, `own`, or an entry
    of license-decisions.yaml. Of the rows that are drawn, at most the share `max_skipped` may be
    unusable; they are left out.
    """

    text: Text
    dataset: DatasetParams | None
    license: Text
    max_skipped: Annotated[float, Field(ge=0, lt=1)]
    num_calibration_samples: PositiveInt
    max_seq_length: PositiveInt
    seed: Annotated[int, Field(ge=0)]


class PackedJudge(StrEnum):
    """What judges AWQ, GPTQ and compressed-tensors variants; the base is scored in it as well.

    transformers reads the weights that the packed files stand for, vLLM the packed files. `auto` is
    vLLM where there is a GPU, else transformers.
    """

    AUTO = "auto"
    TRANSFORMERS = "transformers"
    VLLM = "vllm"


class EvaluateParams(Record):
    """What is measured on the base and on every variant.

    `suite` is a key of `eval/suites.yaml`; `max_documents` limits each task (null: all); `text`
    is held-out text for KL and perplexity, read in `num_windows` windows of `window_tokens`.
    `controls` are the engines that judge GGUF variants: the base is scored in each of them too.
    `packed_judge` judges the others.
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
    """For whom a release is; what goes to affiliates or the public is passed on."""

    INTERNAL = "internal"
    AFFILIATES = "affiliates"
    PUBLIC = "public"


class ReleaseParams(Record):
    """Under which name and version the approved variants are released, for whom and by whom.

    `commercial` is true where a company releases or uses them, or anything is earned with them.
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
    """Where releases go: a registry's URL, or null for the OCI image layout under `artifacts/`."""

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
    """The whole of `params.yaml`."""

    model: ModelParams
    calibration: CalibrationParams
    variants: dict[str, VariantParams]
    evaluate: EvaluateParams
    gate: GateParams
    serve: ServeParams
    economics: EconomicsParams
    release: ReleaseParams
    registry: RegistryParams

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
