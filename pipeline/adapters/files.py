"""Files that appear whole or not at all, and their digests.

Everything is written beside its place and renamed into it, so that a kill at any moment leaves
either the old state or the new one.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.domain.errors import FailureError, InputError
from pipeline.domain.manifest import FileRecord
from pipeline.domain.record import Record

CHUNK_BYTES = 1 << 22
PARTIAL_SUFFIX = ".partial"


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_record(path: Path, root: Path) -> FileRecord:
    return FileRecord(
        path=path.relative_to(root).as_posix(),
        size=path.stat().st_size,
        sha256=file_sha256(path),
    )


def directory_records(root: Path) -> tuple[FileRecord, ...]:
    """Every regular file below `root`, sorted by path. Raises InputError on a symbolic link."""
    paths = sorted(path for path in root.rglob("*") if path.is_symlink() or path.is_file())
    for path in paths:
        if path.is_symlink() and path.is_dir():
            raise InputError(f"{path}: expected a regular file, found a link to a directory")
    return tuple(file_record(path, root) for path in paths)


def read_bytes(path: Path, *, made_by: str) -> bytes:
    """The bytes of a file that a stage made; InputError names the stage when it is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; run `quantline {made_by}` first") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with readable_disk_errors(path):
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_record(path: Path, record: Record) -> None:
    write_bytes(path, record.to_bytes())


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A fresh directory beside `target` that replaces it when the block ends without an error."""
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    remove_tree(partial)
    with readable_disk_errors(target):
        try:
            partial.mkdir(parents=True)
            yield partial
            remove_tree(target)
            partial.rename(target)
        finally:
            remove_tree(partial)


@contextmanager
def readable_disk_errors(target: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(existing_parent(target)).free
            raise FailureError(
                f"{target}: the disk is full ({free / 2**20:.0f} MiB free); free some space and "
                "run the same command again, nothing half-written was kept"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise FailureError(f"{target}: cannot be written ({error.strerror})") from error
        raise


def require_free_space(target: Path, num_bytes: int) -> None:
    """Raise FailureError, before anything is written, when the disk has less than `num_bytes`."""
    free = shutil.disk_usage(existing_parent(target)).free
    if free < num_bytes:
        raise FailureError(
            f"{target}: {num_bytes / 2**20:.0f} MiB of disk needed, {free / 2**20:.0f} MiB free; "
            "free some space and run the same command again"
        )


def existing_parent(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def remove_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
