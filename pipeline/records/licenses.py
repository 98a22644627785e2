"""License facts of a checkpoint, the decisions that people signed, and the license that applies."""

from datetime import date
from typing import Annotated

from pydantic import StringConstraints

from pipeline.core.file_records import RelativePath, Sha256
from pipeline.core.record import Record

SignedText = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


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
    """The signed decision of a person about a checkpoint's license.

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
    """The license that applies by its rule, and the decision that it needed, if any.

    `id` is as model cards write it; `expression` the SPDX one, or a `LicenseRef-…`.
    """

    id: str
    name: str
    expression: str
    decision: LicenseDecision | None


LICENSE_FILE = "LICENSE"
"""The name of the file with the text of the license, in every release."""
