"""An OCI image layout on disk: a registry that is a directory.

`skopeo`, `oras` and others read it as it is (`oci:DIRECTORY:TAG`). Blobs appear whole or not at
all, and a tag appears in `index.json` after everything it names.

Format: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import ConfigDict

from pipeline.adapters.files import (
    CHUNK_BYTES,
    PARTIAL_SUFFIX,
    readable_disk_errors,
    write_bytes,
    write_record,
)
from pipeline.adapters.oci_blob import Advance, Blob, no_progress
from pipeline.adapters.oci_store import StoredManifest
from pipeline.domain.errors import FailureError, InputError, shown
from pipeline.domain.oci import (
    EMPTY_INDEX,
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    REF_NAME_ANNOTATION,
    Descriptor,
    ImageIndex,
    OciRecord,
    blob_digest,
    descriptor_of,
)
from pipeline.domain.reference import is_digest

LAYOUT_FILE: Final = "oci-layout"
LAYOUT_CONTENT: Final = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_FILE: Final = "index.json"


class LayoutVersion(OciRecord):
    """The content of `oci-layout`."""

    image_layout_version: str


class ManifestType(OciRecord):
    """The one key of any manifest that says what the rest is."""

    model_config = ConfigDict(extra="ignore")

    media_type: str | None = None


class ImageLayout:
    """The layout in `directory`, which is made by the first push; `shown_as` is its public name."""

    def __init__(self, directory: Path, *, shown_as: str) -> None:
        self._directory = directory
        self._shown_as = shown_as

    def reference(self, name: str) -> str:
        return f"oci:{self._shown_as}{'@' if is_digest(name) else ':'}{name}"

    def tags(self) -> tuple[str, ...]:
        """All tags, in the order of the index. Raises InputError when the index is damaged."""
        return index_tags(self._index())

    def manifest(self, name: str) -> StoredManifest | None:
        """What a tag or digest names, or None. Raises InputError when the layout is damaged."""
        entry = index_entry(self._index(), name)
        if entry is None and not is_digest(name):
            return None
        path = self._blob_path(entry.digest if entry else name)
        if entry is None and not path.exists():
            return None
        self._require_file(path)
        data = path.read_bytes() if path.stat().st_size <= MAX_MANIFEST_BYTES else b""
        return checked_manifest(entry, data, name=name, path=str(path))

    def chunks(self, blob: Descriptor, start: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from `start`, not compared with its digest."""
        path = self._blob_path(blob.digest)
        self._require_file(path)
        with path.open("rb") as file:
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def referrers(self, digest: str) -> tuple[Descriptor, ...] | None:
        """A layout has no referrers API."""
        return None

    def push_blob(self, blob: Blob, advance: Advance) -> None:
        """Store a blob unless it is there. Raises InputError when its bytes have another digest."""
        path = self._blob_path(blob.descriptor.digest)
        if path.exists() and path.stat().st_size == blob.descriptor.size:
            advance(blob.descriptor.size)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        digest = hashlib.sha256()
        with readable_disk_errors(path):
            try:
                with partial.open("wb") as file:
                    for chunk in blob.chunks():
                        digest.update(chunk)
                        file.write(chunk)
                        advance(len(chunk))
                if "sha256:" + digest.hexdigest() != blob.descriptor.digest:
                    raise InputError(
                        f"{blob.source}: not the bytes that were recorded; make it again"
                    )
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def push_manifest(self, manifest: Blob, tag: str | None = None) -> None:
        """Store a manifest whose blobs are there; `tag` then names it and nothing else."""
        self.push_blob(manifest, no_progress)
        write_bytes(self._directory / LAYOUT_FILE, LAYOUT_CONTENT)
        if tag is not None:
            entry = manifest.descriptor.model_copy(
                update={"annotations": {REF_NAME_ANNOTATION: tag}}
            )
            write_record(self._directory / INDEX_FILE, with_tag(self._index(), entry))

    def _index(self) -> ImageIndex:
        path = self._directory / INDEX_FILE
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return EMPTY_INDEX
        check_layout_version(self._version(), source=str(self._directory / LAYOUT_FILE))
        return ImageIndex.from_stranger(data, source=str(path))

    def _version(self) -> bytes:
        path = self._directory / LAYOUT_FILE
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise InputError(f"{path}: missing; this is no OCI image layout") from error

    def _blob_path(self, digest: str) -> Path:
        return self._directory / "blobs" / digest.replace(":", "/")

    def _require_file(self, path: Path) -> None:
        if path.is_symlink() or not path.is_file():
            raise FailureError(f"{path}: missing, or not a regular file; the layout is damaged")


def check_layout_version(data: bytes, *, source: str) -> None:
    """Raise InputError unless `data` is an `oci-layout` file of the one version there is."""
    if LayoutVersion.from_stranger(data, source=source).image_layout_version != "1.0.0":
        raise InputError(f"{source}: expected the layout version 1.0.0")


def index_tags(index: ImageIndex) -> tuple[str, ...]:
    names = ((entry.annotations or {}).get(REF_NAME_ANNOTATION) for entry in index.manifests)
    return tuple(name for name in names if name is not None)


def index_entry(index: ImageIndex, name: str) -> Descriptor | None:
    """The entry that a tag or digest names."""
    for entry in index.manifests:
        if name in (entry.digest, (entry.annotations or {}).get(REF_NAME_ANNOTATION)):
            return entry
    return None


def with_tag(index: ImageIndex, entry: Descriptor) -> ImageIndex:
    """The index with `entry` in the place of what had its tag, or at the end."""
    (tag,) = index_tags(EMPTY_INDEX.model_copy(update={"manifests": (entry,)}))
    before = index_entry(index, tag)
    if before is None:
        return index.model_copy(update={"manifests": (*index.manifests, entry)})
    manifests = tuple(entry if it is before else it for it in index.manifests)
    return index.model_copy(update={"manifests": manifests})


def checked_manifest(
    entry: Descriptor | None, data: bytes, *, name: str, path: str
) -> StoredManifest:
    """A manifest whose bytes are what the index, or its own digest, says. Raises FailureError."""
    digest = entry.digest if entry else name
    if blob_digest(data) != digest or (entry and entry.size != len(data)):
        raise FailureError(f"{path}: other bytes than its digest or the index says")
    stated = ManifestType.from_stranger(data, source=path).media_type
    if entry and stated not in (None, entry.media_type):
        raise FailureError(f"{path}: the index calls it {shown(entry.media_type)}")
    media_type = entry.media_type if entry else stated or MANIFEST_TYPE
    return StoredManifest(descriptor_of(data, media_type), data)
