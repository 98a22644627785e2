"""What a set of files is: every file's size and sha256, one digest, and its origin."""

import unicodedata
from datetime import date
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

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
SignedText = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
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


class LicenseFacts(Record):
    """The license of a checkpoint as its own files state it.

    `id` is the identifier of the model card's front matter (`apache-2.0`, `llama3.1`, `other`,
    None when the card names none); `text_path` is the license text among the files, if there is
    one, `text_sha256` its digest and `text_words_sha256` that of its words alone.
    """

    id: str | None
    name: str | None
    link: str | None
    text_path: RelativePath | None
    text_sha256: Sha256 | None
    text_words_sha256: Sha256 | None
    base_model: tuple[str, ...]


class LicenseDecision(Record):
    """What a person decided about a checkpoint's license, and signed.

    `license` is the identifier of a rule. The decision holds for the license text with the sha256
    `text_sha256` and no other; `text` is a file with it, beside params.yaml, where the checkpoint
    has none.
    """

    license: SignedText
    text: RelativePath | None
    text_sha256: Sha256
    decided_by: SignedText
    decided_on: date
    reason: SignedText


class AppliedLicense(Record):
    """The license that applies, by its rule; and the decision, if it took one.

    `id` is as model cards write it; `expression` the SPDX one, or a `LicenseRef-…`.
    """

    id: str
    name: str
    expression: str
    decision: LicenseDecision | None


class BaseManifest(Record):
    """The base checkpoint: where it came from and exactly what it is.

    `source` is the parameter it was fetched by; `revision` the full commit for a hub model and
    None otherwise; `architecture` the first entry of config.json's `architectures`; `license` what
    its files state and `applied_license` what follows.
    """

    source: str
    revision: str | None
    architecture: str
    files: tuple[FileRecord, ...]
    digest: Sha256
    license: LicenseFacts
    applied_license: AppliedLicense

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def weight_bytes(self) -> int:
        return sum(file.size for file in self.files if file.path.endswith(".safetensors"))


class DatasetManifest(Record):
    """The calibration data set of a hub that was fetched, and the names and patterns asked for.

    `source` is None and the rest empty when there is none.
    """

    source: str | None
    patterns: tuple[str, ...]
    files: tuple[FileRecord, ...]
