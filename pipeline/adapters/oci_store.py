"""What registries, image layouts and archives have in common, and what is done with all of them.

A store holds manifests by tag and digest, and blobs. Whatever comes out of one is compared with its
size and digest here, in one place, whichever store it came from.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Final, Protocol, TypeVar

from pipeline.adapters.files import CHUNK_BYTES, readable_disk_errors
from pipeline.adapters.oci_blob import Advance, Blob
from pipeline.adapters.progress import ByteProgress
from pipeline.adapters.registry_errors import TransientError
from pipeline.adapters.registry_retry import Patience
from pipeline.domain.errors import FailureError, InputError
from pipeline.domain.oci import MAX_MANIFEST_BYTES, Descriptor

PARALLEL: Final = 4
UNFINISHED_SUFFIX: Final = ".download"

Item = TypeVar("Item")


@dataclass(frozen=True)
class StoredManifest:
    """A manifest's bytes and what they are; the digest is that of the bytes."""

    descriptor: Descriptor
    data: bytes


class ReadableStore(Protocol):
    """Where releases are read from. Everything raises FailureError or InputError in one line."""

    def reference(self, name: str) -> str: ...
    def tags(self) -> tuple[str, ...]: ...
    def manifest(self, name: str) -> StoredManifest | None: ...
    def chunks(self, blob: Descriptor, start: int = 0) -> Iterator[bytes]: ...
    def referrers(self, digest: str) -> tuple[Descriptor, ...] | None: ...


class Store(ReadableStore, Protocol):
    """Where releases are also written to."""

    def push_blob(self, blob: Blob, advance: Advance) -> None: ...
    def push_manifest(self, manifest: Blob, tag: str | None = None) -> None: ...


def require_manifest(store: ReadableStore, name: str) -> StoredManifest:
    """What `name` names. Raises InputError when there is nothing."""
    stored = store.manifest(name)
    if stored is None:
        raise InputError(f"{store.reference(name)}: no such release; `quantline ls` lists them")
    return stored


def push_once(store: Store, manifest: Blob, tag: str) -> None:
    """Name a manifest by a tag that never moves. Raises InputError when it names another."""
    if not is_published(store, manifest.descriptor.digest, tag):
        store.push_manifest(manifest, tag)


def is_published(store: ReadableStore, digest: str, tag: str) -> bool:
    """Whether `tag` names `digest`. Raises InputError when it names something else."""
    existing = store.manifest(tag)
    if existing is not None and existing.descriptor.digest != digest:
        raise InputError(
            f"{store.reference(tag)}: already names another content "
            f"({existing.descriptor.digest}), and tags never move; raise release.version"
        )
    return existing is not None


def verified_chunks(store: ReadableStore, blob: Descriptor) -> Iterator[bytes]:
    """The bytes of a blob; after the last of them, FailureError when they are not its own."""
    digest, size = hashlib.sha256(), 0
    for chunk in _patient_chunks(store, blob, 0):
        size += len(chunk)
        digest.update(chunk)
        yield chunk
    _check(store, blob, digest.hexdigest(), size)


def read_blob(store: ReadableStore, blob: Descriptor, *, limit: int = MAX_MANIFEST_BYTES) -> bytes:
    """The bytes of a small blob, verified. Raises InputError when it is larger than `limit`."""
    if blob.size > limit:
        raise InputError(
            f"{store.reference(blob.digest)}: {blob.size} bytes, too many for what it is"
        )
    return b"".join(verified_chunks(store, blob))


def download(store: ReadableStore, blob: Descriptor, target: Path, advance: Advance) -> None:
    """Bring a blob to `target`, which appears whole and verified or not at all.

    What an earlier run brought stays beside it and is not fetched again.
    """
    partial = target.with_name(target.name + UNFINISHED_SUFFIX)
    with readable_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("a+b") as file:
            if file.tell() > blob.size:
                file.truncate(0)
            digest, size = hashlib.sha256(), 0
            file.seek(0)
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                advance(len(chunk))
            for chunk in _patient_chunks(store, blob, size):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                advance(len(chunk))
        try:
            _check(store, blob, digest.hexdigest(), size)
        except FailureError:
            partial.unlink()
            raise
        partial.replace(target)


def transfer(
    items: Sequence[Item],
    move: Callable[[Item, Advance], None],
    *,
    label: str,
    total_bytes: int,
) -> None:
    """`move` every item, a few at a time; the first error stops all of them and is raised."""
    stopped, lock = Event(), Lock()

    def advance(num_bytes: int) -> None:
        if stopped.is_set():
            raise FailureError(f"{label}: stopped")
        with lock:
            progress.advance(num_bytes)

    with (
        ByteProgress(label, total_bytes=total_bytes) as progress,
        ThreadPoolExecutor(PARALLEL) as pool,
    ):
        futures = [pool.submit(move, item, advance) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def _patient_chunks(store: ReadableStore, blob: Descriptor, start: int) -> Iterator[bytes]:
    """The bytes of a blob from `start`; a broken line is taken up where it broke.

    Raises FailureError as soon as there are more bytes than the blob has.
    """
    patience = Patience()
    while start < blob.size or blob.size == 0:
        try:
            for chunk in store.chunks(blob, start):
                start += len(chunk)
                if start > blob.size:
                    raise _wrong(store, blob, f"more than its {blob.size} bytes")
                yield chunk
                patience.progress()
            return
        except TransientError as error:
            patience.wait(error)


def _check(store: ReadableStore, blob: Descriptor, sha256: str, size: int) -> None:
    if size != blob.size:
        raise _wrong(store, blob, f"{size} bytes instead of {blob.size}")
    if "sha256:" + sha256 != blob.digest:
        raise _wrong(store, blob, "other bytes than its digest says")


def _wrong(store: ReadableStore, blob: Descriptor, what: str) -> FailureError:
    title = next(iter((blob.annotations or {}).values()), blob.media_type)
    return FailureError(f"{store.reference(blob.digest)} ({title!r}): {what}; it was not kept")
