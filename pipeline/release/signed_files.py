"""Give model-signing the digests of files, so that it does not read the files.

A package's manifest and a release's layers have the sha256 of each file already.

Format: https://github.com/ossf/model-signing-spec
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pipeline.core.file_records import FileRecord

HASH_TYPE: Final = "sha256"
GIT_FILES: Final = (".git", ".gitattributes", ".github", ".gitignore")
"""Files of Git, which model-signing leaves out by default: a signed directory may be in Git."""


class SignedFiles:
    """Return the known digests of `files` where model-signing would compute them.

    It takes the place of a `model_signing.hashing.Config`, which reads the files of a directory.
    `name` is the name of the directory in the signature.
    """

    def __init__(self, files: Iterable[FileRecord], *, name: str) -> None:
        self._files = tuple(files)
        self._name = name

    def add_ignored_paths(self, *, model_path: Path, paths: object) -> None:
        """Ignore nothing: a file that the signer left out is not signed."""

    def hash(self, model_path: Path, *, files_to_hash: object = None) -> Any:
        """Return a `model_signing.manifest.Manifest` of all files."""
        # Its public modules take a Digest and do not offer the class.
        from model_signing._hashing.hashing import Digest
        from model_signing.manifest import FileManifestItem, Manifest, SerializationType

        items = [
            FileManifestItem(
                path=PurePosixPath(file.path), digest=Digest(HASH_TYPE, bytes.fromhex(file.sha256))
            )
            for file in self._files
        ]
        kind = {
            "method": "files",
            "hash_type": HASH_TYPE,
            "allow_symlinks": False,
            "ignore_paths": GIT_FILES,
        }
        return Manifest(self._name, items, SerializationType.from_args(kind))
