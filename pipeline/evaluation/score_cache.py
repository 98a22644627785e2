"""Keep results of scoring by the digest of all that they depend on, so that none is computed twice.

Results are `artifacts/cache/KEY.json`. The logits of models that others are compared with are
`KEY.logits`: float32 [windows, tokens, vocabulary], the exact numbers that the engine gave. KEY is
the sha256 of the model's digest, the digest of the questions or the text, the engine and its
version, the processor, the packages that take part in scoring, and this program's code. The files
appear whole and may be deleted at any time. Together they take at most `SCORES_CACHE_BYTES`: the
least recently used are deleted first.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.core.errors import InputError
from pipeline.core.files import replacement, work_key, write_record
from pipeline.core.machine import this_machine
from pipeline.core.record import Record
from pipeline.core.workspace import SCORES_CACHE_BYTES
from pipeline.engines.scorer import Logits, Scorer, engine_of
from pipeline.evaluation.task_runs import Rows
from pipeline.records.evaluation import Distance, DocumentRecord, Engine

SCORING_PACKAGES = ("lm_eval", "transformers")
"""They, and the packages they require, make the questions, the token ids and the metrics."""

PACKAGE_NAME = re.compile(r"[\w.-]+")


class ScoredRows(Record):
    """Hold what one model answered to documents of a task."""

    documents: tuple[DocumentRecord, ...]


class ScoredText(Record):
    """Hold what one model scored on the held-out text."""

    perplexity: float
    distance: Distance | None


AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True)
class ScoreCache:
    """Read and write the results of one model, named by its digest.

    `facts` are further facts that all results depend on.
    """

    directory: Path
    scorer: Scorer
    artifact_digest: str
    facts: tuple[str, ...]

    def rows(self, asked_digest: str, compute: Callable[[], Rows]) -> Rows:
        """Return the rows of the documents that `asked_digest` stands for."""
        return self._record(
            ScoredRows, (asked_digest,), lambda: ScoredRows(documents=compute())
        ).documents

    def text(
        self,
        text_digest: str,
        reference: tuple[str, Engine] | None,
        compute: Callable[[], ScoredText],
    ) -> ScoredText:
        """Return the scores on a text, and the distance to the model of `reference`."""
        return self._record(ScoredText, (text_digest, str(reference)), compute)

    def logits(
        self, text_digest: str, shape: tuple[int, int, int], compute: Callable[[], Iterable[Logits]]
    ) -> Logits:
        """Return the logits on a text, of `shape` [windows, tokens, vocabulary], mapped from disk.

        `compute` gives them window by window. Raises InputError for a file of another size.
        """
        path = self._path("logits", "logits", (text_digest, str(shape)))
        if not _was_used(path):
            with replacement(path) as file:
                for window in compute():
                    file.write(np.ascontiguousarray(window, dtype=np.float32).data)
            prune(self.directory, max_bytes=SCORES_CACHE_BYTES)
        if path.stat().st_size != math.prod(shape) * np.dtype(np.float32).itemsize:
            raise InputError(f"{path}: expected float32 numbers of shape {shape}; delete the file")
        return np.memmap(path, np.float32, mode="r", shape=shape)

    def _record(
        self, kind: type[AnyRecord], facts: tuple[str, ...], compute: Callable[[], AnyRecord]
    ) -> AnyRecord:
        path = self._path(kind.__name__, "json", facts)
        if _was_used(path):
            return kind.from_bytes(path.read_bytes(), source=str(path))
        result = compute()
        write_record(path, result)
        prune(self.directory, max_bytes=SCORES_CACHE_BYTES)
        return result

    def _path(self, kind: str, suffix: str, facts: tuple[str, ...]) -> Path:
        where = (*environment_facts(), str(engine_of(self.scorer)), self.artifact_digest)
        return self.directory / f"{work_key(kind, *where, *self.facts, *facts)}.{suffix}"


def _was_used(path: Path) -> bool:
    """Mark a file as used now; returns whether it exists."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@cache
def environment_facts() -> tuple[str, ...]:
    """Return the packages and the processor, which scores depend on beside model and code."""
    machine = this_machine()
    processor = (machine.cpu, f"{machine.cores} cores", *machine.isa, *machine.gpus)
    return (*sorted(package_versions(*SCORING_PACKAGES)), *processor)


def package_versions(*names: str) -> set[str]:
    """Return `name version` of these packages, and of the installed ones that they require."""
    requirements = (text for name in names for text in requires(name) or ())
    matches = map(PACKAGE_NAME.match, requirements)
    return set(_installed({*names, *(match[0] for match in matches if match)}))


def _installed(names: set[str]) -> Iterator[str]:
    for name in names:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue  # it may be required for an extra alone


def prune(directory: Path, *, max_bytes: int) -> None:
    """Delete the least recently used files until the others take at most `max_bytes`."""
    paths = (*directory.glob("*.json"), *directory.glob("*.logits"))
    files = [(path, path.stat()) for path in paths]
    num_bytes = sum(status.st_size for _, status in files)
    for path, status in sorted(files, key=lambda file: file[1].st_mtime_ns):
        if num_bytes <= max_bytes:
            break
        path.unlink(missing_ok=True)
        num_bytes -= status.st_size
