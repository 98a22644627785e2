"""Define the records of licenses: what files state, what people decided, and what applies."""

from datetime import date
from enum import StrEnum
from typing import Annotated

from pydantic import StringConstraints

from pipeline.core.file_records import RelativePath, Sha256
from pipeline.core.record import Record

SignedText = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class Grant(StrEnum):
    """Say for which purposes a quantized copy may be made and passed on."""

    ANY = "any"
    NON_COMMERCIAL = "non-commercial"
    RESEARCH = "research"


class LicenseFacts(Record):
    """Hold the license of a checkpoint as its own files state it.

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


class LicenseTerms(Record):
    """Hold what a license means for a release, as the person who decided has read it.

    `grants` are the purposes that it allows, `notice_text` goes into the NOTICE file, and every
    recipient is told the `conditions`.
    """

    name: SignedText
    grants: Grant
    notice_text: SignedText | None = None
    conditions: tuple[SignedText, ...] = ()


class LicenseDecision(Record):
    """Hold what a person decided about the license of a checkpoint or of data, and signed.

    `license` is the identifier of a rule, or of a license without one, whose `terms` stand here
    then. The decision holds for the license text with the sha256 `text_sha256` and no other; `text`
    is a file with it, beside params.yaml, where the checkpoint has none. Data always need it.
    """

    license: SignedText
    terms: LicenseTerms | None = None
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


class DataLicense(Record):
    """Name the license of calibration data: the parameter, and what applies; None for own data."""

    stated: str
    applied: AppliedLicense | None

    def __str__(self) -> str:
        """Return the name of the license, with who decided on it."""
        if self.applied is None or self.applied.decision is None:
            return self.stated
        decision = self.applied.decision
        return f"{self.applied.name} (decided by {decision.decided_by} on {decision.decided_on})"


LICENSE_FILE = "LICENSE"
"""The name of the file with the text of the license, in every release."""
