"""Draw the tokens that calibration reads: documents by seed, without those of the evaluation.

Documents are drawn one after the other until there are enough tokens, so that the time does not
depend on the size of the data set. A row that cannot be read as a document is skipped and counted
by reason, up to a share. A document that overlaps with evaluation text is dropped and counted
(`pipeline.calibration.overlap`). The result names the compared texts, with a digest of each.
Nothing is measured here.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any, Final

from pipeline.calibration.conversations import Document, UnusableRowError, document_of
from pipeline.calibration.overlap import NGRAM_WORDS, NgramIndex
from pipeline.checkpoint.chat_rendering import template_date
from pipeline.core.documents import open_documents, read_texts
from pipeline.core.errors import InputError
from pipeline.core.file_records import tree_digest
from pipeline.core.files import directory_records, file_sha256, write_bytes
from pipeline.core.progress import note
from pipeline.core.record import sha256_hex
from pipeline.core.texts import token_ids_sha256, token_windows
from pipeline.core.workspace import Workspace
from pipeline.params.params import CalibrationParams, Params
from pipeline.records.statistics import (
    ComparedTexts,
    Decontamination,
    SkippedRows,
    SkipReason,
    skipped_text,
)
from pipeline.tasks.texts import suite_texts

FIRST_BATCH, LARGEST_BATCH = 64, 1024
"""Documents that are read together, so that rows of one parquet row group are read at once."""

MANY_SKIPPED: Final = 1000
"""So many skipped rows tell their share: a data set of another form is not read to its end."""

HELD_OUT = "evaluate.text"


@dataclass(frozen=True)
class CalibrationSample:
    """The windows of token ids, all equally long, and the digests of the text and the ids.

    `text_sha256` is the digest of the data file, or of the tree of files of a data set. `skipped`
    and `template_date` are those of the StatisticsRecord.
    """

    windows: list[list[int]]
    text_sha256: str
    token_ids_sha256: str
    decontamination: Decontamination
    skipped: tuple[SkippedRows, ...]
    template_date: date | None


def calibration_sample(workspace: Workspace, params: Params, tokenizer: Any) -> CalibrationSample:
    """Draw `num_calibration_samples` windows of `max_seq_length` tokens.

    Raises InputError for data, tasks or a chat template that cannot be used, for more unusable rows
    than `max_skipped` allows, and for too little text, with the number of windows that would be
    possible.
    """
    calibration = params.calibration
    path = workspace.root / calibration.text
    index, compared = _evaluation_index(workspace, params)
    drawn = _Drawn(calibration, index, tokenizer)

    def encode(document: Document) -> list[int]:
        ids: list[int] = tokenizer.encode(document.text, add_special_tokens=not document.has_marks)
        return ids

    with open_documents(path) as documents:
        num_rows = documents.num_rows
        rows = (
            row
            for numbers in _batches(drawn_order(num_rows, seed=calibration.seed))
            for row in documents.rows(numbers)
        )
        try:
            windows = token_windows(
                drawn.clean(rows),
                encode,
                window_tokens=calibration.max_seq_length,
                num_windows=calibration.num_calibration_samples,
                source=_source(calibration),
            )
        except InputError as error:
            drawn.require_few_skipped()
            if not drawn.num_dropped:
                raise
            raise InputError(
                f"{error} ({drawn.num_dropped} of {drawn.num_documents} documents were dropped: "
                f"they share {NGRAM_WORDS} words in a row with the evaluation)"
            ) from error
    drawn.require_few_skipped()
    note(
        f"calibrate: {drawn.num_documents} of {num_rows} documents drawn, {drawn.num_dropped} "
        f"dropped for overlap with {', '.join(text.name for text in compared)}"
    )
    skipped = drawn.skipped()
    if skipped:
        note(f"calibrate: {skipped_text(skipped)}; the first: {drawn.first_skipped}")
    return CalibrationSample(
        windows=windows,
        text_sha256=(tree_digest(directory_records(path)) if path.is_dir() else file_sha256(path)),
        token_ids_sha256=token_ids_sha256(windows),
        decontamination=Decontamination(
            ngram_words=NGRAM_WORDS,
            compared=compared,
            num_documents_drawn=drawn.num_documents,
            num_contaminated_dropped=drawn.num_dropped,
        ),
        skipped=skipped,
        template_date=template_date(tokenizer) if drawn.num_conversations else None,
    )


def require_documents(workspace: Workspace, calibration: CalibrationParams, tokenizer: Any) -> None:
    """Raise InputError unless one of the rows that are drawn first can be read as a document.

    So data of another form, or chats without a chat template, are found before anything is made.
    """
    drawn = _Drawn(calibration, NgramIndex(), tokenizer)
    with open_documents(workspace.root / calibration.text) as documents:
        numbers = list(islice(drawn_order(documents.num_rows, seed=calibration.seed), FIRST_BATCH))
        rows = documents.rows(numbers)
        if next(drawn.clean(rows), None) is None:
            drawn.require_few_skipped()


def write_token_ids(path: Path, windows: Sequence[Sequence[int]]) -> None:
    """Write the windows as a JSON list of lists, for stages that read the same tokens again."""
    write_bytes(path, json.dumps([list(window) for window in windows]).encode() + b"\n")


class _Drawn:
    """Reads drawn rows as documents, skips those that are none, and drops those that overlap.

    Overlap is with the evaluation texts of `index`. Everything is counted.
    """

    def __init__(self, calibration: CalibrationParams, index: NgramIndex, tokenizer: Any) -> None:
        self._calibration = calibration
        self._index = index
        self._tokenizer = tokenizer
        self._skipped: Counter[SkipReason] = Counter()
        self.first_skipped = ""
        self.num_documents = 0
        self.num_conversations = 0
        self.num_dropped = 0

    def clean(self, rows: Iterable[tuple[str, object]]) -> Iterator[Document]:
        """Yield the documents that may be read; ends early when far too many rows are none."""
        for where, row in rows:
            try:
                document = document_of(row, where, self._tokenizer)
            except UnusableRowError as error:
                self._skipped[error.reason] += 1
                self.first_skipped = self.first_skipped or str(error)
                if self._skipped.total() >= MANY_SKIPPED and self._too_many():
                    return
                continue
            if not document.content.strip():
                continue
            self.num_documents += 1
            self.num_conversations += document.has_marks
            if self._index.overlaps(document.content):
                self.num_dropped += 1
            else:
                yield document

    def skipped(self) -> tuple[SkippedRows, ...]:
        """Return how many rows were skipped for which reason, in the order of the reasons."""
        return tuple(
            SkippedRows(reason=reason, num_rows=self._skipped[reason])
            for reason in SkipReason
            if self._skipped[reason]
        )

    def require_few_skipped(self) -> None:
        """Raise InputError when a larger share of the rows was skipped than may be."""
        if self._too_many():
            raise InputError(
                f"{_source(self._calibration)}: {skipped_text(self.skipped())}, beside "
                f"{self.num_documents} documents; calibration.max_skipped = "
                f"{self._calibration.max_skipped} allows fewer: raise it, or use other data. The "
                f"first: {self.first_skipped}"
            )

    def _too_many(self) -> bool:
        num_skipped = self._skipped.total()
        num_rows = num_skipped + self.num_documents
        return num_skipped > self._calibration.max_skipped * num_rows


def _source(calibration: CalibrationParams) -> str:
    return f"calibration.text = {calibration.text}"


def _evaluation_index(
    workspace: Workspace, params: Params
) -> tuple[NgramIndex, tuple[ComparedTexts, ...]]:
    """Index the n-grams of every task of the suite and of the held-out text."""
    evaluate = params.evaluate
    index = NgramIndex()
    compared = []
    held_out = read_texts(workspace.root / evaluate.text)
    for name, texts in (*suite_texts(workspace.root, evaluate.suite), (HELD_OUT, held_out)):
        for text in texts:
            index.add(text)
        digest = sha256_hex("\0".join(texts).encode("utf-8", "surrogatepass"))
        compared.append(ComparedTexts(name=name, num_texts=len(texts), sha256=digest))
    return index, tuple(compared)


def drawn_order(num_rows: int, *, seed: int) -> Iterator[int]:
    """Yield the numbers below `num_rows` in random order, each once.

    This is a Fisher-Yates shuffle from the front that keeps only the numbers it has moved, so that
    memory grows with the numbers taken, not with `num_rows`.
    """
    rng = random.Random(seed)
    moved: dict[int, int] = {}
    for place in range(num_rows):
        other = rng.randrange(place, num_rows)
        yield moved.get(other, other)
        moved[other] = moved.pop(place, place)


def _batches(numbers: Iterator[int]) -> Iterator[list[int]]:
    """Group numbers into batches that grow from FIRST_BATCH to LARGEST_BATCH."""
    size = FIRST_BATCH
    while batch := list(islice(numbers, size)):
        yield batch
        size = min(2 * size, LARGEST_BATCH)
