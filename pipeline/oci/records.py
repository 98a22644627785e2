"""Descriptors, manifests and indexes, which every OCI registry and image layout consists of.

These records are read from untrusted places: sizes and counts are bounded, digests are sha256, and
keys that the specification does not know are tolerated, as it demands. Nothing here reads a file or
talks to a registry.

Format: https://github.com/opencontainers/image-spec (descriptor.md, manifest.md, image-index.md).
"""

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from pipeline.core.file_records import Digest
from pipeline.core.record import Record

# https://github.com/opencontainers/image-spec/blob/main/media-types.md
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY_CONTENT: Final = b"{}"
# https://distribution.github.io/distribution/spec/manifest-v2-2/
DOCKER_MANIFEST_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX_TYPE: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES: Final = (MANIFEST_TYPE, INDEX_TYPE, DOCKER_MANIFEST_TYPE, DOCKER_INDEX_TYPE)

# https://github.com/opencontainers/image-spec/blob/main/annotations.md; ORAS names the files it
# pulls by the title.
TITLE_ANNOTATION: Final = "org.opencontainers.image.title"
REF_NAME_ANNOTATION: Final = "org.opencontainers.image.ref.name"

MAX_MANIFEST_BYTES: Final = 4 << 20  # what registries must accept, by the distribution spec
MAX_BLOB_BYTES: Final = 1 << 44  # 16 TiB: no file of a model is larger
MAX_LAYERS: Final = 10_000
TAG_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"  # by the distribution spec


class OciRecord(Record):
    """A record whose file form has the camelCase keys of the OCI specifications, without nulls."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, serialize_by_alias=True
    )

    def to_bytes(self) -> bytes:
        """Return the file form: indented JSON with a line end."""
        return (self.model_dump_json(indent=2, exclude_none=True) + "\n").encode()


class Descriptor(OciRecord):
    """One blob: its type, digest and size in bytes. Unknown keys are kept."""

    model_config = ConfigDict(extra="allow")

    media_type: str
    digest: Digest
    size: Annotated[int, Field(ge=0, le=MAX_BLOB_BYTES)]
    artifact_type: str | None = None
    annotations: dict[str, str] | None = None


class ImageIndex(OciRecord):
    """A list of manifests: `index.json` of a layout, a list of referrers. Unknown keys are kept."""

    model_config = ConfigDict(extra="allow")

    schema_version: Literal[2]
    media_type: str | None = None
    manifests: Annotated[tuple[Descriptor, ...], Field(max_length=MAX_LAYERS)]


class ImageManifest(OciRecord):
    """Any image manifest, OCI's or Docker's. Unknown keys are kept."""

    model_config = ConfigDict(extra="allow")

    schema_version: Literal[2]
    media_type: str | None = None
    artifact_type: str | None = None
    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], Field(max_length=MAX_LAYERS)]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


EMPTY_INDEX: Final = ImageIndex(schema_version=2, media_type=INDEX_TYPE, manifests=())


def descriptor_of(data: bytes, media_type: str) -> Descriptor:
    """Return the descriptor of a blob with the bytes `data`."""
    return Descriptor(media_type=media_type, digest=Digest.of(data), size=len(data))
