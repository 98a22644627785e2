"""The interface of registries, image layouts and archives, and transfers from and to all of them.

A store holds manifests by tag and digest, and blobs. All that is read from one is compared with its
size and digest here, whichever store it came from.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Final, Protocol, TypeVar

from pipeline.core.errors import FailureError, InputError
from pipeline.core.files import CHUNK_BYTES, file_sha256, readable_disk_errors
from pipeline.core.locked_file import locked_file
from pipeline.core.progress import ByteProgress
from pipeline.oci.blob import Advance, Blob
from pipeline.oci.errors import TransientError
from pipeline.oci.records import MAX_MANIFEST_BYTES, Descriptor
from pipeline.oci.retry import RetryPolicy

PARALLEL: Final = 4
STOP_GRACE_S: Final = 1.0  # for threads that have a file to tidy up
UNFINISHED_SUFFIX: Final = ".download"

Item = TypeVar("Item")


@dataclass(frozen=True)
class StoredManifest:
    """A manifest's bytes and what they are; the digest is that of the bytes."""

    descriptor: Descriptor
    data: bytes


class DamagedManifestError(FailureError):
    """The manifest with this digest is missing or damaged; storing it again repairs it."""

    def __init__(self, message: str, *, digest: str) -> None:
        super().__init__(message)
        self.digest = digest


class ReadableStore(Protocol):
    """Where releases are read from. Everything raises FailureError or InputError in one line."""

    def reference(self, name: str) -> str: ...
    def tags(self) -> tuple[str, ...]: ...
    def manifest(self, name: str) -> StoredManifest | None: ...
    def chunks(self, blob: Descriptor, start: int = 0) -> Iterator[bytes]: ...
    def referrers(self, digest: str) -> tuple[Descriptor, ...] | None: ...


class Store(ReadableStore, Protocol):
    """Where releases are also written to.

    `exclusive` keeps other writers out between a check and the change that depends on it, where
    the store can do that.
    """

    def exclusive(self) -> AbstractContextManager[None]: ...
    def push_blob(self, blob: Blob, advance: Advance) -> None: ...
    def push_manifest(self, manifest: Blob, tag: str | None = None) -> None: ...


def require_manifest(store: ReadableStore, name: str) -> StoredManifest:
    """Return what `name` names. Raises InputError when there is nothing."""
    stored = store.manifest(name)
    if stored is None:
        raise InputError(f"{store.reference(name)}: no such release; `quantline ls` lists them")
    return stored


def push_once(store: Store, manifest: Blob, tag: str) -> None:
    """Name a manifest by a tag that never moves. Raises InputError when it names another."""
    with store.exclusive():
        if not is_published(store, manifest.descriptor.digest, tag):
            store.push_manifest(manifest, tag)


def is_published(store: ReadableStore, digest: str, tag: str) -> bool:
    """Whether `tag` names `digest`, and that manifest is whole.

    Raises InputError when it names something else.
    """
    try:
        existing = store.manifest(tag)
    except DamagedManifestError as error:
        if error.digest == digest:
            return False
        raise
    if existing is not None and existing.descriptor.digest != digest:
        raise InputError(
            f"{store.reference(tag)}: already names another content "
            f"({existing.descriptor.digest}), and tags never move; raise release.version"
        )
    return existing is not None


def verified_chunks(store: ReadableStore, blob: Descriptor) -> Iterator[bytes]:
    """Yield the bytes of a blob; after the last of them, FailureError when they are not its own."""
    digest, size = hashlib.sha256(), 0
    for chunk in _resumed_chunks(store, blob, 0):
        size += len(chunk)
        digest.update(chunk)
        yield chunk
    _check(store, blob, digest.hexdigest(), size)


def read_blob(store: ReadableStore, blob: Descriptor, *, limit: int = MAX_MANIFEST_BYTES) -> bytes:
    """Return the bytes of a small blob, verified. Raises InputError when it is above `limit`."""
    if blob.size > limit:
        raise InputError(
            f"{store.reference(blob.digest)}: {blob.size} bytes, too many for what it is"
        )
    return b"".join(verified_chunks(store, blob))


def has_content(path: Path, blob: Descriptor) -> bool:
    """Whether a file has the bytes of a blob, all of which are read for it."""
    return (
        path.is_file()
        and not path.is_symlink()
        and path.stat().st_size == blob.size
        and file_sha256(path) == blob.digest.hex
    )


def download(store: ReadableStore, blob: Descriptor, target: Path, advance: Advance) -> None:
    """Bring a blob to `target` unless it is there; it appears whole and verified or not at all.

    What an earlier run brought stays beside it and is not fetched again. Two runs that want the
    same file bring it once: the second waits.
    """
    partial = target.with_name(target.name + UNFINISHED_SUFFIX)
    with readable_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked_file(partial) as file:
            if has_content(target, blob):
                advance(blob.size)
                partial.unlink()
                return
            if file.tell() > blob.size:
                file.truncate(0)
            digest, size = hashlib.sha256(), 0
            file.seek(0)
            while chunk := file.read(CHUNK_BYTES):
                advance(len(chunk))
                digest.update(chunk)
                size += len(chunk)
            for chunk in _resumed_chunks(store, blob, size):
                advance(len(chunk))  # raises when the transfer was stopped: nothing more is written
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            file.flush()
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
    """Call `move` for every item, a few at a time; the first error, or Ctrl-C, stops all of them.

    Raises that error. A thread that waits for a server at that moment is not waited for: `advance`
    lets it write nothing more, and it ends with the process at the latest.
    """
    waiting: SimpleQueue[Item] = SimpleQueue()
    for item in items:
        waiting.put(item)
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    stopped, lock = Event(), Lock()

    def advance(num_bytes: int) -> None:
        if stopped.is_set():
            raise FailureError(f"{label}: stopped")
        with lock:
            progress.advance(num_bytes)

    def work() -> None:
        try:
            while not stopped.is_set():
                move(waiting.get_nowait(), advance)
        except Empty:
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    threads = [Thread(target=work, daemon=True) for _ in range(min(PARALLEL, len(items)))]
    with ByteProgress(label, total_bytes=total_bytes) as progress:
        try:
            for thread in threads:
                thread.start()
            for _ in threads:
                error = ended.get()
                if error is not None:
                    raise error
        finally:
            stopped.set()
            deadline = time.monotonic() + STOP_GRACE_S
            for thread in threads:
                thread.join(max(deadline - time.monotonic(), 0.0))


def _resumed_chunks(store: ReadableStore, blob: Descriptor, start: int) -> Iterator[bytes]:
    """Yield the bytes of a blob from `start`, and go on after broken connections.

    Raises FailureError as soon as there are more bytes than the blob has.
    """
    retries = RetryPolicy()
    while start < blob.size or blob.size == 0:
        try:
            for chunk in store.chunks(blob, start):
                start += len(chunk)
                if start > blob.size:
                    raise _wrong(store, blob, f"more than its {blob.size} bytes")
                yield chunk
                retries.progress()
            return
        except TransientError as error:
            retries.wait(error)


def _check(store: ReadableStore, blob: Descriptor, sha256: str, size: int) -> None:
    if size != blob.size:
        raise _wrong(store, blob, f"{size} bytes instead of {blob.size}")
    if sha256 != blob.digest.hex:
        raise _wrong(store, blob, "other bytes than its digest says")


def _wrong(store: ReadableStore, blob: Descriptor, what: str) -> FailureError:
    title = next(iter((blob.annotations or {}).values()), blob.media_type)
    return FailureError(f"{store.reference(blob.digest)} ({title!r}): {what}; it was not kept")
