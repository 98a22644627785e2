"""Bringing the files of a release into a directory of their own: whole and verified, or not at all.

Files that arrive lie beside the target until all of them are right, so that a killed or refused
pull leaves nothing in the target, and a repeated one fetches only what is missing.
"""

import shutil
from pathlib import Path
from typing import Final

from pipeline.core.errors import InputError
from pipeline.core.files import (
    directory_records,
    readable_disk_errors,
    remove_tree,
    require_free_space,
)
from pipeline.oci.blob import Advance
from pipeline.oci.records import Descriptor
from pipeline.oci.store import ReadableStore, download, transfer
from pipeline.registry.stored_release import StoredRelease

WORK_SUFFIX: Final = ".partial"
DIGEST_DIGITS: Final = 16


def pull_files(store: ReadableStore, release: StoredRelease, target: Path) -> None:
    """Write every file of a release into `target`, which is new, empty, or has them already.

    Raises InputError when it holds something else, FailureError when the store fails.
    """
    if not _is_free(target, release):
        return
    blobs = {layer.digest: layer for layer in release.contents.files.values()}
    total_bytes = sum(blob.size for blob in blobs.values())
    require_free_space(target, total_bytes)
    key = release.digest.hex[:DIGEST_DIGITS]
    work = target.with_name(f"{target.name}.{key}{WORK_SUFFIX}")

    def bring(blob: Descriptor, advance: Advance) -> None:
        download(store, blob, work / "blobs" / blob.digest.hex, advance)

    label = f"pull {release.package.title}"
    transfer(list(blobs.values()), bring, label=label, total_bytes=total_bytes)
    with readable_disk_errors(target):
        _name_files(work, release)
        if target.is_dir():
            target.rmdir()  # it is empty, or this fails and nothing is lost
        (work / "files").rename(target)
        remove_tree(work)


def _is_free(target: Path, release: StoredRelease) -> bool:
    """Whether `target` is to be written; False when the files are there.

    Raises InputError when it holds anything else: nothing of the user's is ever replaced.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target}: is not a directory; name another with --into")
    if not target.exists() or not any(target.iterdir()):
        return True
    if directory_records(target) != release.contents.file_records():
        raise InputError(
            f"{target}: holds other files than {release.reference}; remove it, or name another "
            "directory with --into"
        )
    return False


def _name_files(work: Path, release: StoredRelease) -> None:
    """Link every blob under the names of its files, in a fresh directory."""
    remove_tree(work / "files")
    for path, layer in release.contents.files.items():
        blob = work / "blobs" / layer.digest.hex
        named = work / "files" / path
        named.parent.mkdir(parents=True, exist_ok=True)
        try:
            named.hardlink_to(blob)
        except OSError:  # file systems without hard links
            shutil.copyfile(blob, named)
