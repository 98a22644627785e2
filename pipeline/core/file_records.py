"""What a set of files is: every file's size and sha256, one digest, and its origin."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.core.record import Record, sha256_hex


def relative_posix(path: str) -> str:
    """Refuse names that could leave the directory they are written to."""
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path:
        raise ValueError("expected a relative path with forward slashes")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError("expected a path without empty, '.' or '..' parts")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        raise ValueError("expected a path without control characters")
    return path


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RelativePath = Annotated[str, AfterValidator(relative_posix)]


class FileRecord(Record):
    """One file of a directory: path relative to it, size in bytes, sha256 of its bytes."""

    path: RelativePath
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


def tree_digest(files: tuple[FileRecord, ...]) -> str:
    """sha256 over the lines `<sha256>  <path>` sorted by path: what `sha256sum` prints."""
    lines = [f"{file.sha256}  {file.path}\n" for file in sorted(files, key=lambda f: f.path)]
    return sha256_hex("".join(lines).encode())
