"""Copying into a package exactly the files that a record names, proven on the way."""

import hashlib
from pathlib import Path

from pipeline.adapters.files import CHUNK_BYTES
from pipeline.domain.errors import InputError
from pipeline.domain.manifest import FileRecord


def copy_verified(file: FileRecord, source_dir: Path, target_dir: Path, *, remedy: str) -> None:
    """Copy one file in a single pass.

    Raises InputError, which ends in `remedy`, when the file is missing, is no regular file, or has
    other bytes than the record says.
    """
    source = source_dir / file.path
    if source.is_symlink() or not source.is_file():
        raise InputError(f"{source}: missing, or not a regular file; {remedy}")
    target = target_dir / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            writer.write(chunk)
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        raise InputError(f"{source}: not the bytes that were recorded; {remedy}")


def read_text(path: Path) -> str:
    """A legal text as it is, with line feeds; bytes that are not UTF-8 are replaced."""
    return path.read_bytes().decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
