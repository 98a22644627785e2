"""What calibrate and quantize leave behind: the records of statistics and of a variant."""

from pipeline.core.file_records import FileRecord, Sha256
from pipeline.core.record import Record
from pipeline.params.params import CalibrationParams


class LinearStatistics(Record):
    """Second moments of one linear input, of `num_tokens` tokens.

    `file` holds the tensor `key`: the upper triangle of G = XᵀX / n, float32, packed by rows.
    `linears` are the modules that read this input, by their name in the checkpoint. An input of
    all experts together has those that saw too few tokens for statistics of their own, or none.
    """

    key: str
    file: str
    in_features: int
    num_tokens: int
    linears: tuple[str, ...]


class ExpertStatistics(Record):
    """How many tokens the router sent to an expert, and which of its linears got too few.

    The `pooled` ones, fewer tokens than inputs, use the statistics of all experts together.
    """

    name: str
    num_tokens: int
    pooled: tuple[str, ...]


class LayerStatistics(Record):
    """What was measured in one decoder layer."""

    inputs: tuple[LinearStatistics, ...]
    experts: tuple[ExpertStatistics, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(entry.key for entry in self.inputs)


class ComparedTexts(Record):
    """Evaluation texts that calibration text was compared with.

    `name` is a task of the suite or `evaluate.text`; `sha256` is over the texts in UTF-8, joined by
    a zero byte.
    """

    name: str
    num_texts: int
    sha256: Sha256


class Decontamination(Record):
    """What keeps calibration apart from evaluation.

    Of the documents that were drawn, those that share `ngram_words` words in a row with a compared
    text (or contain a shorter one) were dropped.
    """

    ngram_words: int
    compared: tuple[ComparedTexts, ...]
    num_documents_drawn: int
    num_contaminated_dropped: int


class StatisticsRecord(Record):
    """One calibration pass: what was measured, on which tokens of which text."""

    base_digest: Sha256
    calibration: CalibrationParams
    text_sha256: Sha256
    token_ids_sha256: Sha256
    num_tokens: int
    num_samples: int
    decontamination: Decontamination
    inputs: tuple[LinearStatistics, ...]
    experts: tuple[ExpertStatistics, ...]
    files: tuple[FileRecord, ...]
    digest: Sha256
