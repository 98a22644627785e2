"""Find the data files that people have, and expand those that are compressed.

A file is compressed when it begins as gzip or Zstandard files do; its name does not count for that.
Whoever made it may be a stranger, and a small file can expand to fill a disk, so there is a limit.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Final

import pyarrow as pa

from pipeline.core.errors import InputError
from pipeline.core.files import readable_disk_errors, require_content
from pipeline.core.formatting import NBSP, bytes_text

DATA_SUFFIXES: Final = (".jsonl", ".json", ".parquet", ".txt", ".raw")
COMPRESSION_SUFFIXES: Final = (".gz", ".zst")
EXPECTED_SUFFIXES: Final = (
    f"{', '.join(DATA_SUFFIXES)}, each also with {' or '.join(COMPRESSION_SUFFIXES)}"
)

GZIP_START: Final = b"\x1f\x8b"  # https://www.rfc-editor.org/rfc/rfc1952
ZSTANDARD_START: Final = b"\x28\xb5\x2f\xfd"  # https://www.rfc-editor.org/rfc/rfc8878

ALWAYS_ALLOWED_BYTES: Final = 1 << 28
MAX_EXPANSION: Final = 64
"""A file may expand to so many times its size, or to ALWAYS_ALLOWED_BYTES. Text takes 3 to 20."""

PIECE_BYTES: Final = 1 << 20


def data_suffix(name: str) -> str | None:
    """Return which of DATA_SUFFIXES a file's name has, before that of its compression; or None."""
    path = PurePath(name)
    if path.suffix in COMPRESSION_SUFFIXES:
        path = path.with_suffix("")
    return path.suffix if path.suffix in DATA_SUFFIXES else None


def plain_file(path: Path, work_dir: Path) -> Path:
    """Return `path` itself, or a new file in `work_dir` with its content when it is compressed.

    Raises InputError for a pointer of Git LFS, and for a compressed file that is damaged, cut off
    or expands beyond the limit.
    """
    require_content(path)
    if not _is_compressed(path):
        return path
    number = sum(1 for _ in work_dir.iterdir())
    target = work_dir / f"{number}{data_suffix(path.name) or ''}"
    with readable_disk_errors(target), target.open("xb") as file:
        for piece in expanded_pieces(path):
            file.write(piece)
    return target


def require_expandable(path: Path) -> None:
    """Raise InputError for a compressed file that `plain_file` would not take; writes nothing."""
    if _is_compressed(path):
        for _ in expanded_pieces(path):
            pass


def expanded_pieces(path: Path) -> Iterator[bytes]:
    """Yield the content of a compressed file piece by piece. Raises InputError like plain_file."""
    limit = max(ALWAYS_ALLOWED_BYTES, MAX_EXPANSION * path.stat().st_size)
    total = 0
    with _expanding(path) as stream:
        while True:
            try:
                piece: bytes = stream.read(PIECE_BYTES)
            except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
                reason = " ".join(str(error).split())[:200]
                raise InputError(
                    f"{path}: cannot be expanded: {reason}; get the file again"
                ) from error
            if not piece:
                return
            total += len(piece)
            if total > limit:
                allowed = bytes_text(limit).replace(NBSP, " ")
                raise InputError(
                    f"{path}: expands to more than {allowed}, {MAX_EXPANSION} times its size; "
                    "expand it yourself if you trust it"
                )
            yield piece


@contextmanager
def _expanding(path: Path) -> Iterator[Any]:
    """Open a compressed file, to read what it expands to."""
    with path.open("rb") as file:
        if _start(file).startswith(GZIP_START):
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream
        else:
            with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as stream:
                yield stream


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return _start(file).startswith((GZIP_START, ZSTANDARD_START))


def _start(file: BinaryIO) -> bytes:
    """Read the first bytes of a file, and go back to its beginning."""
    start = file.read(len(ZSTANDARD_START))
    file.seek(0)
    return start
