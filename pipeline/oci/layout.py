"""An OCI image layout on disk: a registry that is a directory.

`skopeo`, `oras` and others read it as it is (`oci:DIRECTORY:TAG`). Blobs appear whole or not at
all, and a tag appears in `index.json` after everything it names. Several quantlines may write at
once: a blob has one writer at a time, and so has the index, whose lock is on `oci-layout`.

Format: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import BinaryIO, Final

from pydantic import ConfigDict

from pipeline.core.errors import FailureError, InputError, short_repr
from pipeline.core.file_records import Digest
from pipeline.core.files import (
    CHUNK_BYTES,
    PARTIAL_SUFFIX,
    readable_disk_errors,
    write_record,
)
from pipeline.core.locked_file import locked_file
from pipeline.oci.blob import Advance, Blob, no_progress
from pipeline.oci.records import (
    EMPTY_INDEX,
    MANIFEST_TYPE,
    MAX_MANIFEST_BYTES,
    REF_NAME_ANNOTATION,
    Descriptor,
    ImageIndex,
    OciRecord,
    descriptor_of,
)
from pipeline.oci.reference import is_digest
from pipeline.oci.store import DamagedManifestError, StoredManifest, has_content

LAYOUT_FILE: Final = "oci-layout"
LAYOUT_CONTENT: Final = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_FILE: Final = "index.json"
NOT_A_FILE: Final = "missing, or not a regular file; the layout is damaged"


class LayoutVersion(OciRecord):
    """The content of `oci-layout`."""

    image_layout_version: str


class ManifestType(OciRecord):
    """The one key of any manifest that says what the rest is."""

    model_config = ConfigDict(extra="ignore")

    media_type: str | None = None


class OciLayout:
    """The layout in `directory`, which is made by the first push; `shown_as` is its public name."""

    def __init__(self, directory: Path, *, shown_as: str) -> None:
        self._directory = directory
        self._shown_as = shown_as
        self._threads = RLock()
        self._is_locked = False

    def reference(self, name: str) -> str:
        """Return how messages name a tag or digest of the layout."""
        return f"oci:{self._shown_as}{'@' if is_digest(name) else ':'}{name}"

    def tags(self) -> tuple[str, ...]:
        """Return all tags, in the order of the index. Raises InputError when it is damaged."""
        return index_tags(self._index())

    def manifest(self, name: str) -> StoredManifest | None:
        """Return what a tag or digest names, or None. Raises InputError when it is damaged."""
        entry = index_entry(self._index(), name)
        if entry is None and not is_digest(name):
            return None
        digest = entry.digest if entry else name
        path = self._blob_path(digest)
        if entry is None and not path.exists():
            return None
        if not _is_regular(path):
            raise DamagedManifestError(f"{path}: {NOT_A_FILE}", digest=digest)
        data = path.read_bytes() if path.stat().st_size <= MAX_MANIFEST_BYTES else b""
        return checked_manifest(entry, data, name=name, path=str(path))

    def chunks(self, blob: Descriptor, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of a blob from `start`, not compared with its digest."""
        path = self._blob_path(blob.digest)
        if not _is_regular(path):
            raise FailureError(f"{path}: {NOT_A_FILE}")
        with path.open("rb") as file:
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def referrers(self, digest: str) -> tuple[Descriptor, ...] | None:
        """Return None: a layout has no referrers API."""
        return None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Let nobody else change the index in the block; blocks may be nested."""
        with self._threads:
            if self._is_locked:
                yield
                return
            path = self._directory / LAYOUT_FILE
            with readable_disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with locked_file(path) as file:
                    if file.tell() == 0:
                        file.write(LAYOUT_CONTENT)
                        file.flush()
                    self._is_locked = True
                    try:
                        yield
                    finally:
                        self._is_locked = False

    def push_blob(self, blob: Blob, advance: Advance) -> None:
        """Store a blob unless it is there with its own bytes; a damaged one is replaced.

        Raises InputError when the bytes of `blob` have another digest than it says.
        """
        path = self._blob_path(blob.descriptor.digest)
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        with readable_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked_file(partial) as file:
                try:
                    if has_content(path, blob.descriptor):
                        advance(blob.descriptor.size)
                        partial.unlink()
                        return
                    file.truncate(0)  # of a writer that was killed
                    _write_verified(file, blob, advance)
                except BaseException:
                    partial.unlink(missing_ok=True)
                    raise
                partial.replace(path)

    def push_manifest(self, manifest: Blob, tag: str | None = None) -> None:
        """Store a manifest whose blobs are there; `tag` then names it and nothing else."""
        self.push_blob(manifest, no_progress)
        with self.exclusive():
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
        return ImageIndex.from_untrusted(data, source=str(path))

    def _version(self) -> bytes:
        path = self._directory / LAYOUT_FILE
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise InputError(f"{path}: missing; this is no OCI image layout") from error

    def _blob_path(self, digest: str) -> Path:
        return self._directory / "blobs" / digest.replace(":", "/")


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _write_verified(file: BinaryIO, blob: Blob, advance: Advance) -> None:
    """Write a blob's bytes to the disk. Raises InputError when they have another digest."""
    digest = hashlib.sha256()
    for chunk in blob.chunks():
        digest.update(chunk)
        file.write(chunk)
        advance(len(chunk))
    if digest.hexdigest() != blob.descriptor.digest.hex:
        raise InputError(f"{blob.source}: not the bytes that were recorded; make it again")
    file.flush()
    os.fsync(file.fileno())


def check_layout_version(data: bytes, *, source: str) -> None:
    """Raise InputError unless `data` is an `oci-layout` file of the one version there is."""
    if LayoutVersion.from_untrusted(data, source=source).image_layout_version != "1.0.0":
        raise InputError(f"{source}: expected the layout version 1.0.0")


def index_tags(index: ImageIndex) -> tuple[str, ...]:
    """Return the tags of an index, in its order."""
    names = ((entry.annotations or {}).get(REF_NAME_ANNOTATION) for entry in index.manifests)
    return tuple(name for name in names if name is not None)


def index_entry(index: ImageIndex, name: str) -> Descriptor | None:
    """Return the entry that a tag or digest names."""
    for entry in index.manifests:
        if name in (entry.digest, (entry.annotations or {}).get(REF_NAME_ANNOTATION)):
            return entry
    return None


def with_tag(index: ImageIndex, entry: Descriptor) -> ImageIndex:
    """Return the index with `entry` in the place of what had its tag, or at the end."""
    (tag,) = index_tags(EMPTY_INDEX.model_copy(update={"manifests": (entry,)}))
    before = index_entry(index, tag)
    if before is None:
        return index.model_copy(update={"manifests": (*index.manifests, entry)})
    manifests = tuple(entry if manifest is before else manifest for manifest in index.manifests)
    return index.model_copy(update={"manifests": manifests})


def checked_manifest(
    entry: Descriptor | None, data: bytes, *, name: str, path: str
) -> StoredManifest:
    """Return a manifest whose bytes are what the index, or its own digest, says.

    Raises DamagedManifestError when its bytes have another digest, FailureError when the index
    says something else of it.
    """
    digest = entry.digest if entry else name
    if Digest.of(data) != digest:
        raise DamagedManifestError(f"{path}: other bytes than its digest says", digest=digest)
    if entry and entry.size != len(data):
        raise FailureError(f"{path}: another size than the index says")
    stated = ManifestType.from_untrusted(data, source=path).media_type
    if entry and stated not in (None, entry.media_type):
        raise FailureError(f"{path}: the index calls it {short_repr(entry.media_type)}")
    media_type = entry.media_type if entry else stated or MANIFEST_TYPE
    return StoredManifest(descriptor_of(data, media_type), data)
