"""One tar file that is an OCI image layout: a release on its way to a site without a network.

Written, it holds one release with its evidence, and the same release gives the same bytes. Read, it
is a store: blobs are found by their place in the file and nothing is ever unpacked, so that no name
in it can reach anywhere. `skopeo copy oci-archive:FILE:TAG` reads it as well.

Format: https://github.com/opencontainers/image-spec/blob/main/image-layout.md in
https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html (ustar)
"""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from pipeline.core.errors import FailureError, InputError, short_repr
from pipeline.core.files import replacement
from pipeline.oci.blob import Advance, Blob, FilePart
from pipeline.oci.layout import (
    INDEX_FILE,
    LAYOUT_CONTENT,
    LAYOUT_FILE,
    check_layout_version,
    checked_manifest,
    index_entry,
    index_tags,
)
from pipeline.oci.records import (
    EMPTY_INDEX,
    MAX_LAYERS,
    MAX_MANIFEST_BYTES,
    Descriptor,
    ImageIndex,
)
from pipeline.oci.reference import is_digest
from pipeline.oci.store import ReadableStore, StoredManifest, verified_chunks

BLOB_NAME: Final = re.compile(r"blobs/sha256/([0-9a-f]{64})")
DIRECTORY_NAME: Final = re.compile(r"(\./)?(blobs(/sha256)?)?/?|\.")


class Archive:
    """The archive at `path`, read only. Raises InputError when it is not such a layout."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._members = _members(path)
        check_layout_version(self._small(LAYOUT_FILE), source=f"{path}: {LAYOUT_FILE}")
        source = f"{path}: {INDEX_FILE}"
        self._index = ImageIndex.from_untrusted(self._small(INDEX_FILE), source=source)

    def reference(self, name: str) -> str:
        """Return how messages name a tag or digest of the archive."""
        return f"oci-archive:{self._path}{'@' if is_digest(name) else ':'}{name}"

    def tags(self) -> tuple[str, ...]:
        """Return all tags, in the order of the index."""
        return index_tags(self._index)

    def manifest(self, name: str) -> StoredManifest | None:
        """Return what a tag or digest names, or None. Raises InputError when it is damaged."""
        entry = index_entry(self._index, name)
        if entry is None and not is_digest(name):
            return None
        member = _blob_name(entry.digest if entry else name)
        if entry is None and member not in self._members:
            return None
        return checked_manifest(entry, self._small(member), name=name, path=self.reference(name))

    def chunks(self, blob: Descriptor, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of a blob from `start`, not compared with its digest."""
        part, size = self._member(_blob_name(blob.digest))
        if size != blob.size:
            raise InputError(f"{self.reference(blob.digest)}: {size} bytes, not {blob.size}")
        yield from Blob(blob, part).chunks(start)

    def referrers(self, digest: str) -> tuple[Descriptor, ...] | None:
        """Return None: an archive has no referrers API."""
        return None

    def blob(self, descriptor: Descriptor) -> Blob:
        """Return a blob as something to push elsewhere, where its digest is compared."""
        part, _ = self._member(_blob_name(descriptor.digest))
        return Blob(descriptor, part)

    def _member(self, name: str) -> tuple[FilePart, int]:
        if name not in self._members:
            raise InputError(f"{self._path}: {name} is missing")
        return self._members[name]

    def _small(self, name: str) -> bytes:
        part, size = self._member(name)
        if size > MAX_MANIFEST_BYTES:
            raise InputError(f"{self._path}: {name} has {size} bytes, too many for what it is")
        with part.path.open("rb") as file:
            file.seek(part.offset)
            return file.read(size)


def write_archive(
    target: Path,
    store: ReadableStore,
    blobs: tuple[Descriptor, ...],
    manifests: tuple[StoredManifest, ...],
    tagged: tuple[Descriptor, ...],
    advance: Advance,
) -> None:
    """Write blobs of `store`, manifests, and an index that names those of `tagged`.

    The file appears whole or not at all, and every blob is verified on its way.
    """
    index = EMPTY_INDEX.model_copy(update={"manifests": tagged})
    with replacement(target) as file, tarfile.open(fileobj=file, mode="w") as archive:
        _add(archive, LAYOUT_FILE, io.BytesIO(LAYOUT_CONTENT), len(LAYOUT_CONTENT))
        for manifest in manifests:
            name = _blob_name(manifest.descriptor.digest)
            _add(archive, name, io.BytesIO(manifest.data), len(manifest.data))
        for blob in blobs:
            chunks = _Stream(verified_chunks(store, blob), advance)
            _add(archive, _blob_name(blob.digest), chunks, blob.size)
            chunks.finish()
        data = index.to_bytes()
        _add(archive, INDEX_FILE, io.BytesIO(data), len(data))


class _Stream(io.RawIOBase):
    """Chunks in the form of a file that `tarfile` reads."""

    def __init__(self, chunks: Iterator[bytes], advance: Advance) -> None:
        self._chunks = chunks
        self._advance = advance
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes, fewer at the end."""
        while len(self._rest) < size and (chunk := next(self._chunks, b"")):
            self._advance(len(chunk))
            self._rest += chunk
        part, self._rest = self._rest[:size], self._rest[size:]
        return part

    def finish(self) -> None:
        """Read to the end, where the digest is compared."""
        for _ in self._chunks:
            pass


def _add(archive: tarfile.TarFile, name: str, file: "BinaryIO | io.RawIOBase", size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    archive.addfile(member, file)


def _members(path: Path) -> dict[str, tuple[FilePart, int]]:
    """Return where every file of the archive begins and how long it is. Raises InputError."""
    members: dict[str, tuple[FilePart, int]] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isdir() and DIRECTORY_NAME.fullmatch(member.name):
                    continue
                name = member.name.removeprefix("./")
                _require_expected(member, name, path)
                if name in members:
                    raise InputError(f"{path}: two members are named {short_repr(name)}")
                if len(members) == MAX_LAYERS:
                    raise InputError(f"{path}: more than {MAX_LAYERS} members")
                if member.offset_data + member.size > path.stat().st_size:
                    raise InputError(f"{path}: ends within {short_repr(name)}; copy it again")
                members[name] = (FilePart(path, member.offset_data), member.size)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: expected an uncompressed tar file of `quantline export`"
        ) from error
    except OSError as error:
        raise FailureError(f"{path}: cannot be read ({error.strerror})") from error
    return members


def _require_expected(member: tarfile.TarInfo, name: str, path: Path) -> None:
    if not member.isreg() or member.issparse() or member.size < 0:
        raise InputError(f"{path}: {short_repr(member.name)} is not a plain file")
    if name not in (LAYOUT_FILE, INDEX_FILE) and not BLOB_NAME.fullmatch(name):
        raise InputError(f"{path}: {short_repr(member.name)} has no place in an OCI image layout")


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")
