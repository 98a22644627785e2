"""Atomic writes of files and directories, their digests, and readable errors of the disk.

A file or directory is written beside its final path and then renamed. A kill at any moment leaves
either the old content or the new one.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import ValidationError

from pipeline.core.errors import FailureError, InputError, short_repr
from pipeline.core.file_records import FileRecord
from pipeline.core.locked_file import locked_file
from pipeline.core.record import Record

CHUNK_BYTES = 1 << 22
POINTER_START = b"version https://git-lfs.github.com/spec/"
PARTIAL_SUFFIX = ".partial"
REPLACED_SUFFIX = ".replaced"
KEY_DIGITS = 16
KEY = rf"[0-9a-f]{{{KEY_DIGITS}}}"
PACKAGE_DIR = Path(__file__).resolve().parent.parent
PLUGIN_DIR = PACKAGE_DIR.parent / "envs" / "vllm-plugin" / "quantline_vllm"  # scores too
NUMERICAL_LIBRARIES = ("numpy", "torch", "transformers")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

AnyRecord = TypeVar("AnyRecord", bound=Record)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_content(path: Path) -> None:
    """Raise InputError for a Git LFS pointer, which is there until the file itself is downloaded.

    Format: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
    """
    with path.open("rb") as file:
        start = file.read(len(POINTER_START))
    if start == POINTER_START:
        raise InputError(
            f"{path}: a Git LFS pointer in place of the file; run `git lfs pull` where it was "
            "cloned, or download the file itself"
        )


def file_record(path: Path, root: Path) -> FileRecord:
    """Return the path from `root`, the size and the sha256 of a file.

    Raises InputError for a name that a manifest may not hold.
    """
    try:
        return FileRecord(
            path=path.relative_to(root).as_posix(),
            size=path.stat().st_size,
            sha256=file_sha256(path),
        )
    except ValidationError as error:
        raise InputError(
            f"{short_repr(str(path))}: expected a name in UTF-8 without backslashes or control "
            "characters; rename the file"
        ) from error


def directory_records(root: Path) -> tuple[FileRecord, ...]:
    """Return the record of every file below `root`, sorted by path.

    A link to a file counts as the file. Raises InputError on any other link.
    """
    paths = [path for path in root.rglob("*") if path.is_symlink() or path.is_file()]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: expected a file, found a link to something else; remove it")
    return tuple(sorted((file_record(path, root) for path in paths), key=lambda file: file.path))


def read_bytes(path: Path, *, made_by: str) -> bytes:
    """Read a file that the command `made_by` makes. Raises InputError that names this command."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; run `quantline {made_by}` first") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise InputError(
            f"{path}: expected a file in a directory ({error.strerror}); remove what is there and "
            f"run `quantline {made_by}` again"
        ) from error
    except PermissionError as error:
        raise InputError(
            f"{path}: no permission to read it; change its permissions, or remove it and run "
            f"`quantline {made_by}` again"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); run `quantline {made_by}` again"
        ) from error


def read_record(kind: type[AnyRecord], path: Path, *, made_by: str) -> AnyRecord:
    """Read a record that the command `made_by` writes.

    Raises InputError that names the file and this command when the file is missing, unreadable or
    damaged.
    """
    data = read_bytes(path, made_by=made_by)
    return kind.from_bytes(data, source=str(path), made_by=made_by)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacement(path) as file:
        file.write(data)


def write_json(path: Path, value: object) -> None:
    """Write `value` atomically as JSON: keys in their order, two-space indent, a final newline."""
    write_bytes(path, json.dumps(value, indent=2).encode() + b"\n")


def copy_file(source: Path, target: Path, *, advance: Callable[[int], None]) -> None:
    """Copy a file to `target` atomically; `advance` is called with the size of each chunk."""
    with source.open("rb") as original, replacement(target) as copy:
        while chunk := original.read(CHUNK_BYTES):
            copy.write(chunk)
            advance(len(chunk))


@contextmanager
def replacement(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` that replaces it when the block ends without an error.

    Writers of the same path wait for each other. Raises FailureError as `readable_disk_errors`.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with readable_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked_file(partial):
            try:
                with partial.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise


def write_record(path: Path, record: Record) -> None:
    write_bytes(path, record.to_bytes())


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Make a new directory beside `target` that replaces it when the block ends without error."""
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    with readable_disk_errors(target):
        restore_directory(target)
        remove_tree(partial)
        try:
            partial.mkdir(parents=True)
            yield partial
            replace_directory(partial, target)
        finally:
            remove_tree(partial)


@contextmanager
def resumable_directory(target: Path, *, key: str) -> Iterator[Path]:
    """Make a directory beside `target` that outlives a kill and replaces it when the block ends.

    `key` is the sha256 of everything the result depends on (`work_key`). The directory still holds
    the files that an earlier run with the same key finished before it was killed or failed.
    Half-written files and the work of other keys are removed. Write each file atomically, by
    `write_bytes`, `replacement` or `save_tensors`, and skip the files that exist.
    """
    work = target.with_name(f"{target.name}.{key[:KEY_DIGITS]}{PARTIAL_SUFFIX}")
    work_name = re.compile(rf"{re.escape(target.name)}\.{KEY}{re.escape(PARTIAL_SUFFIX)}")
    with readable_disk_errors(target):
        work.mkdir(parents=True, exist_ok=True)
        restore_directory(target)
        for other in target.parent.iterdir():
            if other != work and work_name.fullmatch(other.name):
                remove_tree(other)
        for unfinished in work.rglob(f"*{PARTIAL_SUFFIX}"):
            remove_tree(unfinished)
        yield work
        replace_directory(work, target)


def work_key(*facts: str) -> str:
    """Return the sha256, in hex, of `facts`, quantline's code and the numerical libraries."""
    digest = hashlib.sha256()
    modules = (*sorted(PACKAGE_DIR.rglob("*.py")), *sorted(PLUGIN_DIR.glob("*.*")))
    for module in modules:
        digest.update(hashlib.sha256(module.read_bytes()).digest())
    for fact in (*facts, *(f"{name} {version(name)}" for name in NUMERICAL_LIBRARIES)):
        digest.update(hashlib.sha256(fact.encode()).digest())
    return digest.hexdigest()


def replace_directory(source: Path, target: Path) -> None:
    """Rename `source` to `target`, then remove the directory that was there before.

    A rename cannot replace a directory that is not empty, so two are needed. After a kill between
    them the old directory is beside `target`, and `restore_directory` brings it back.
    """
    restore_directory(target)
    replaced = _replaced_by(target)
    remove_tree(replaced)
    if os.path.lexists(target):
        target.rename(replaced)
    source.rename(target)
    remove_tree(replaced)


def restore_directory(target: Path) -> None:
    """Bring `target` back if a kill interrupted `replace_directory` between its two renames."""
    replaced = _replaced_by(target)
    if os.path.lexists(replaced) and not os.path.lexists(target):
        replaced.rename(target)


def _replaced_by(target: Path) -> Path:
    """Return the path that holds the old directory until the new one has replaced it."""
    return target.with_name(target.name + REPLACED_SUFFIX)


@contextmanager
def readable_disk_errors(target: Path) -> Iterator[None]:
    """Raise FailureError for a full disk, a missing permission or a path of the wrong kind."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            free = shutil.disk_usage(existing_parent(target)).free
            raise FailureError(
                f"{target}: the disk is full ({free / 2**20:.0f} MiB free); free some space and "
                "run the same command again, nothing half-written was kept"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            place = error.filename or target
            raise FailureError(
                f"{place}: no access ({error.strerror}); change its permissions and run the same "
                "command again"
            ) from error
        if error.errno == errno.EISDIR:
            raise FailureError(
                f"{error.filename or target}: a directory is where a file should be; remove it"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise FailureError(
                f"{target}: a file is where a directory of this path should be; remove it"
            ) from error
        if error.errno == errno.EFBIG:
            raise FailureError(
                f"{target}: larger than its file system or a limit of this process allows "
                "(`ulimit -f`); use another disk or raise the limit"
            ) from error
        raise


def require_free_space(target: Path, num_bytes: int) -> None:
    """Raise FailureError when the disk of `target` has less than `num_bytes` free."""
    free = shutil.disk_usage(existing_parent(target)).free
    if free < num_bytes:
        raise FailureError(
            f"{target}: {num_bytes / 2**20:.0f} MiB of disk needed, {free / 2**20:.0f} MiB free; "
            "free some space and run the same command again"
        )


def existing_parent(path: Path) -> Path:
    """Return `path` or the nearest of its parents that exists."""
    while not path.exists():
        path = path.parent
    return path


def remove_tree(path: Path) -> None:
    """Remove a directory with its content, a file or a link; do nothing when there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
