"""Draw the tokens that calibration reads: documents by seed, without those of the evaluation.

Documents are drawn one after the other until there are enough tokens, so that the time does not
depend on the size of the data set. A document that overlaps with evaluation text is dropped and
counted (`pipeline.calibration.overlap`). The result names the compared texts, with a digest of
each.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.calibration.conversations import Document, document_of
from pipeline.calibration.documents import open_documents
from pipeline.calibration.overlap import NGRAM_WORDS, NgramIndex
from pipeline.core.errors import InputError
from pipeline.core.file_records import tree_digest
from pipeline.core.files import directory_records, file_sha256, write_bytes
from pipeline.core.progress import note
from pipeline.core.record import sha256_hex
from pipeline.core.texts import read_texts, token_ids_sha256, token_windows
from pipeline.core.workspace import Workspace
from pipeline.params.params import Params
from pipeline.records.statistics import ComparedTexts, Decontamination
from pipeline.tasks.texts import suite_texts

FIRST_BATCH, LARGEST_BATCH = 64, 1024
"""Documents that are read together, so that rows of one parquet row group are read at once."""

HELD_OUT = "evaluate.text"


@dataclass(frozen=True)
class CalibrationSample:
    """The windows of token ids, all equally long, and the digests of the text and the ids.

    `text_sha256` is the digest of the data file, or of the tree of files of a data set.
    """

    windows: list[list[int]]
    text_sha256: str
    token_ids_sha256: str
    decontamination: Decontamination


def calibration_sample(workspace: Workspace, params: Params, tokenizer: Any) -> CalibrationSample:
    """Draw `num_calibration_samples` windows of `max_seq_length` tokens.

    Raises InputError for data, tasks or a chat template that cannot be used, and for too little
    text, with the number of windows that would be possible.
    """
    calibration = params.calibration
    path = workspace.root / calibration.text
    source = f"calibration.text = {calibration.text}"
    documents = open_documents(path)
    index, compared = _evaluation_index(workspace, params)
    drawn = _Drawn(index)

    def encode(document: Document) -> list[int]:
        ids: list[int] = tokenizer.encode(document.text, add_special_tokens=not document.has_marks)
        return ids

    rows = (
        document_of(row, where, tokenizer)
        for numbers in _batches(drawn_order(documents.num_rows, seed=calibration.seed))
        for where, row in documents.rows(numbers)
    )
    try:
        windows = token_windows(
            drawn.clean(rows),
            encode,
            window_tokens=calibration.max_seq_length,
            num_windows=calibration.num_calibration_samples,
            source=source,
        )
    except InputError as error:
        if not drawn.num_dropped:
            raise
        raise InputError(
            f"{error} ({drawn.num_dropped} of {drawn.num_documents} documents were dropped: they "
            f"share {NGRAM_WORDS} words in a row with the evaluation)"
        ) from error
    note(
        f"calibrate: {drawn.num_documents} of {documents.num_rows} documents drawn, "
        f"{drawn.num_dropped} dropped for overlap with {', '.join(text.name for text in compared)}"
    )
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
    )


def write_token_ids(path: Path, windows: Sequence[Sequence[int]]) -> None:
    """Write the windows as a JSON list of lists, for stages that read the same tokens again."""
    write_bytes(path, json.dumps([list(window) for window in windows]).encode() + b"\n")


class _Drawn:
    """Counts the documents drawn, and drops those that overlap with the evaluation."""

    def __init__(self, index: NgramIndex) -> None:
        self._index = index
        self.num_documents = 0
        self.num_dropped = 0

    def clean(self, documents: Iterator[Document]) -> Iterator[Document]:
        for document in documents:
            if not document.content.strip():
                continue
            self.num_documents += 1
            if self._index.overlaps(document.content):
                self.num_dropped += 1
            else:
                yield document


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
