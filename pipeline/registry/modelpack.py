"""A release as ModelPack describes it: a config blob, and one uncompressed layer for each file.

Formats: https://github.com/modelpack/model-spec (docs/spec.md, docs/config.md,
docs/annotations.md).
"""

from pathlib import PurePosixPath
from typing import Final, Literal

from pipeline.core.file_records import Digest, FileRecord
from pipeline.oci.records import (
    MANIFEST_TYPE,
    TITLE_ANNOTATION,
    Descriptor,
    OciRecord,
    descriptor_of,
)
from pipeline.records.release import PackageManifest

# https://github.com/modelpack/model-spec/blob/main/docs/spec.md
MODEL_ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
WEIGHT_LAYER_TYPE: Final = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_LAYER_TYPE: Final = "application/vnd.cncf.model.weight.config.v1.raw"
DOC_LAYER_TYPE: Final = "application/vnd.cncf.model.doc.v1.raw"
LAYER_TYPES: Final = (WEIGHT_LAYER_TYPE, WEIGHT_CONFIG_LAYER_TYPE, DOC_LAYER_TYPE)
# https://github.com/modelpack/model-spec/blob/main/docs/annotations.md
FILE_PATH_ANNOTATION: Final = "org.cncf.model.filepath"

WEIGHT_SUFFIXES: Final = (".safetensors", ".gguf")
DOC_NAMES: Final = ("license", "notice", "readme.md", "manifest.json")


class ModelManifest(OciRecord):
    """The image manifest of one release."""

    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"]
    artifact_type: Literal["application/vnd.cncf.model.manifest.v1+json"]
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str]


class ModelDescriptor(OciRecord):
    """What the model is, for people and catalogues. `licenses` are SPDX expressions."""

    family: str
    name: str
    version: str
    vendor: str
    title: str
    description: str
    revision: str | None = None
    licenses: tuple[str, ...]


class ModelCapabilities(OciRecord):
    """What the model reads and writes, and in which languages."""

    input_types: tuple[str, ...]
    output_types: tuple[str, ...]
    languages: tuple[str, ...]


class ModelDetails(OciRecord):
    """Technical facts; the specification has no precision below 8 bits, so none is given."""

    architecture: str
    format: str
    param_size: str
    quantization: str
    capabilities: ModelCapabilities


class ModelFiles(OciRecord):
    """Digests of the uncompressed layers, in the order of the manifest."""

    type: Literal["layers"]
    diff_ids: tuple[Digest, ...]


class ModelConfig(OciRecord):
    """The config blob of ModelPack."""

    descriptor: ModelDescriptor
    config: ModelDetails
    modelfs: ModelFiles


def layer_type(path: str) -> str:
    """Return the media type of a package's file, by its name."""
    file = PurePosixPath(path)
    if file.suffix in WEIGHT_SUFFIXES:
        return WEIGHT_LAYER_TYPE
    return DOC_LAYER_TYPE if file.name.lower() in DOC_NAMES else WEIGHT_CONFIG_LAYER_TYPE


def layer(file: FileRecord) -> Descriptor:
    """Return the layer that holds one file of a package."""
    return Descriptor(
        media_type=layer_type(file.path),
        digest=file.digest,
        size=file.size,
        annotations={FILE_PATH_ANNOTATION: file.path, TITLE_ANNOTATION: file.path},
    )


def param_size(num_parameters: int) -> str:
    """Return a count of parameters as ModelPack writes it: `6.7b`, with at most one decimal."""
    for scale, letter in ((10**12, "t"), (10**9, "b"), (10**6, "m")):
        if num_parameters >= scale:
            return f"{num_parameters / scale:.1f}".removesuffix(".0") + letter
    return f"{num_parameters / 1000:.1f}".removesuffix(".0") + "k"


def model_config(package: PackageManifest, layers: tuple[Descriptor, ...]) -> ModelConfig:
    """Return the config blob of a package's release."""
    return ModelConfig(
        descriptor=ModelDescriptor(
            family=package.model_type,
            name=package.name,
            version=package.version,
            vendor=package.quantized_by,
            title=package.title,
            description=f"{package.base.name} quantized with {package.quantizer}",
            revision=package.base.revision,
            licenses=(package.license.expression,),
        ),
        config=ModelDetails(
            architecture="transformer",
            format="gguf" if package.format == "gguf" else "safetensors",
            param_size=param_size(package.num_parameters),
            quantization=package.quantization,
            capabilities=ModelCapabilities(
                input_types=("text",),
                output_types=("text",),
                languages=tuple(code for code in package.languages if len(code) == 2),
            ),
        ),
        modelfs=ModelFiles(type="layers", diff_ids=tuple(layer.digest for layer in layers)),
    )


def model_manifest(
    package: PackageManifest, *, config: bytes, layers: tuple[Descriptor, ...]
) -> ModelManifest:
    """Return the manifest of a package's release; its bytes depend on the package alone."""
    annotations = {
        TITLE_ANNOTATION: package.title,
        "org.opencontainers.image.version": package.version,
        "org.opencontainers.image.vendor": package.quantized_by,
        "org.opencontainers.image.licenses": package.license.expression,
        "org.opencontainers.image.base.name": package.base.name,
    }
    if package.base.revision is not None:
        annotations["org.opencontainers.image.revision"] = package.base.revision
    return ModelManifest(
        schema_version=2,
        media_type=MANIFEST_TYPE,
        artifact_type=MODEL_ARTIFACT_TYPE,
        config=descriptor_of(config, MODEL_CONFIG_TYPE),
        layers=layers,
        annotations=annotations,
    )
