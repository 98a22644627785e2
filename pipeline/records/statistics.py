"""The records of calibrate: the statistics, their text, and what was left out of the text."""

from collections.abc import Sequence
from datetime import date
from enum import StrEnum

from pipeline.core.file_records import FileRecord, Sha256
from pipeline.core.record import Record
from pipeline.params.params import CalibrationParams


class LinearStatistics(Record):
    """The second moments of one linear input over `num_tokens` tokens.

    `file` has the tensor `key`: the upper triangle of G = XᵀX / n, float32, packed by rows.
    `linears` are the modules that read this input, by their name in the checkpoint. For an input of
    all experts together they are the linears of undersampled experts, or none.
    """

    key: str
    file: str
    in_features: int
    num_tokens: int
    linears: tuple[str, ...]


class ExpertStatistics(Record):
    """The number of tokens that the router sent to an expert.

    Its `pooled` linears got fewer tokens than they have input channels. They use the statistics of
    all experts together.
    """

    name: str
    num_tokens: int
    pooled: tuple[str, ...]


class LayerStatistics(Record):
    """The statistics of one decoder layer."""

    inputs: tuple[LinearStatistics, ...]
    experts: tuple[ExpertStatistics, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(entry.key for entry in self.inputs)


class ComparedTexts(Record):
    """The evaluation texts that calibration text was compared with.

    `name` is a task of the suite or `evaluate.text`. `sha256` is over the texts in UTF-8, joined by
    a zero byte.
    """

    name: str
    num_texts: int
    sha256: Sha256


class Decontamination(Record):
    """The removal of evaluation text from calibration text.

    Drawn documents that share `ngram_words` words in a row with a compared text, or contain a
    shorter compared text, were dropped.
    """

    ngram_words: int
    compared: tuple[ComparedTexts, ...]
    num_documents_drawn: int
    num_contaminated_dropped: int


class SkipReason(StrEnum):
    """Say why a row of calibration data cannot be read as a document."""

    MALFORMED = "not JSON"
    NO_DOCUMENT = "neither text nor turns"
    NO_TURNS = "no turns"
    NO_ROLE = "a turn without a role"
    NO_TEXT = "content that is not text"
    TEMPLATE = "refused by the chat template"


class SkippedRows(Record):
    """Count the rows that were drawn and skipped for one reason."""

    reason: SkipReason
    num_rows: int


def skipped_text(skipped: Sequence[SkippedRows]) -> str:
    """Return how many rows were skipped, in all and for each reason."""
    total = sum(rows.num_rows for rows in skipped)
    reasons = ", ".join(f"{rows.num_rows} {rows.reason}" for rows in skipped)
    return f"{total} rows were skipped ({reasons})"


class StatisticsRecord(Record):
    """One calibration pass: its statistics, and the text and tokens that they were measured on.

    `skipped` counts the rows that could not be read; none of them is a document that was drawn.
    `template_date` is what the chat template was told when it asked for today's date; None where it
    was not asked to render anything, or does not print the date.
    """

    base_digest: Sha256
    calibration: CalibrationParams
    text_sha256: Sha256
    token_ids_sha256: Sha256
    num_tokens: int
    num_samples: int
    decontamination: Decontamination
    skipped: tuple[SkippedRows, ...]
    template_date: date | None
    inputs: tuple[LinearStatistics, ...]
    experts: tuple[ExpertStatistics, ...]
    files: tuple[FileRecord, ...]
    digest: Sha256
