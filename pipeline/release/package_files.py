"""Copy into a package exactly the files that a record names, and verify them on the way."""

import hashlib
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.file_records import FileRecord
from pipeline.core.files import CHUNK_BYTES, file_sha256, write_bytes
from pipeline.core.workspace import Workspace
from pipeline.records.base import BaseManifest


def copy_verified(file: FileRecord, source_dir: Path, target_dir: Path, *, remedy: str) -> None:
    """Copy one file, and compare it with its record in the same pass.

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


def write_license(workspace: Workspace, base: BaseManifest, target: Path) -> None:
    """Write the license text that applies: the checkpoint's own, or that of the decision.

    Raises InputError when it is not the text that fetch read.
    """
    own, decision = base.license, base.applied_license.decision
    if own.text_path is not None:
        source, sha256 = workspace.base_dir / own.text_path, own.text_sha256
    else:
        assert decision is not None
        assert decision.text is not None, "fetch asks for a text"
        source, sha256 = workspace.root / decision.text, decision.text_sha256
    if not source.is_file() or file_sha256(source) != sha256:
        raise InputError(f"{source}: not the license that was fetched; run `quantline fetch` again")
    write_bytes(target, source.read_bytes())
