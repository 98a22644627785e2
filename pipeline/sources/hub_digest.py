"""Parse the digests that a hub lists for its files, and compare files with them.

Git LFS files are listed with the sha256 of their bytes, others with git's blob id: the SHA-1 of
`blob <size>\\0` and the bytes (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects).
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import short_repr
from pipeline.core.file_records import FileRecord
from pipeline.core.files import CHUNK_BYTES, file_record

GIT_ID = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubDigest:
    """Hold the size of a file in bytes, and one of its two digests, as a hub lists them."""

    size: int
    git_id: str | None
    sha256: str | None


def parse_digest(size: object, *, git_id: object, sha256: object) -> HubDigest:
    """Parse the values that a hub lists; `sha256` is None for a file outside Git LFS.

    Raises ValueError that names the wrong value.
    """
    if type(size) is not int or size < 0:
        raise ValueError(f"size {short_repr(size)}, expected a number of bytes")
    if isinstance(sha256, str) and SHA256.fullmatch(sha256):
        return HubDigest(size, git_id=None, sha256=sha256)
    if sha256 is None and isinstance(git_id, str) and GIT_ID.fullmatch(git_id):
        return HubDigest(size, git_id=git_id, sha256=None)
    raise ValueError(f"digest {short_repr(git_id if sha256 is None else sha256)}, expected hex")


def hub_record(path: Path, digest: HubDigest) -> FileRecord | str:
    """Return the record of a file that equals what the hub lists, else the difference."""
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != digest.size:
        return f"{size} bytes, the hub lists {digest.size}"
    record = file_record(path, path.parent)
    if digest.sha256 is not None and record.sha256 != digest.sha256:
        return f"sha256 {record.sha256}, the hub lists {digest.sha256}"
    if digest.git_id is not None and (found := git_blob_id(path)) != digest.git_id:
        return f"git blob id {found}, the hub lists {digest.git_id}"
    return record


def git_blob_id(path: Path) -> str:
    """Return git's blob id of a file, 40 hex digits."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
