"""What has been scored once is not scored again: results kept by the digest of all they depend on.

A result is a file `artifacts/cache/KEY.json`, where KEY is the sha256 of the model's digest, the
digest of what was asked, the engine and its version, the processor, the packages that take part in
scoring, and this program's code. The files are validated records, appear whole, and may be deleted
at any time. Together they take at most `CACHE_BYTES`: those that were not used for longest go.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TypeVar

from pipeline.core.files import work_key, write_record
from pipeline.core.machine import this_machine
from pipeline.core.record import Record
from pipeline.engines.scorer import Scorer, engine_of
from pipeline.evaluation.task_runs import Rows
from pipeline.records.evaluation import Distance, DocumentRecord, Engine

CACHE_BYTES = 1 << 28

SCORING_PACKAGES = ("lm_eval", "transformers")
"""With what they require: they make the questions, the token ids and the metrics."""

PACKAGE_NAME = re.compile(r"[\w.-]+")


class ScoredRows(Record):
    """What one model answered to documents of a task."""

    documents: tuple[DocumentRecord, ...]


class ScoredText(Record):
    """What one model makes of the held-out text."""

    perplexity: float
    distance: Distance | None


AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True)
class Memory:
    """The results of one model, by its digest; `facts` are what else all of them depend on."""

    directory: Path
    scorer: Scorer
    artifact_digest: str
    facts: tuple[str, ...]

    def rows(self, asked_digest: str, compute: Callable[[], Rows]) -> Rows:
        return self._kept(
            ScoredRows, (asked_digest,), lambda: ScoredRows(documents=compute())
        ).documents

    def text(
        self,
        text_digest: str,
        reference: tuple[str, Engine] | None,
        compute: Callable[[], ScoredText],
    ) -> ScoredText:
        """`reference` is the digest of the model that the distance is to, and what computes it."""
        return self._kept(ScoredText, (text_digest, str(reference)), compute)

    def _kept(
        self, kind: type[AnyRecord], facts: tuple[str, ...], compute: Callable[[], AnyRecord]
    ) -> AnyRecord:
        engine = str(engine_of(self.scorer))
        where = (*environment_facts(), engine, self.artifact_digest)
        path = self.directory / f"{work_key(kind.__name__, *where, *self.facts, *facts)}.json"
        try:
            data = path.read_bytes()
            os.utime(path)  # it was used
        except FileNotFoundError:
            result = compute()
            write_record(path, result)
            prune(self.directory, max_bytes=CACHE_BYTES)
            return result
        return kind.from_bytes(data, source=str(path))


@cache
def environment_facts() -> tuple[str, ...]:
    """What scores depend on beside model, question and code: the packages and the processor."""
    machine = this_machine()
    processor = (machine.cpu, f"{machine.cores} cores", *machine.isa, *machine.gpus)
    return (*sorted(package_versions(*SCORING_PACKAGES)), *processor)


def package_versions(*names: str) -> set[str]:
    """`name version` of these packages and of all that they require themselves and is installed."""
    required = (PACKAGE_NAME.match(it) for name in names for it in requires(name) or ())
    return set(_installed({*names, *(it[0] for it in required if it)}))


def _installed(names: set[str]) -> Iterator[str]:
    for name in names:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue  # it may be required for an extra alone


def prune(directory: Path, *, max_bytes: int) -> None:
    """Delete the results that were not used for longest, until `max_bytes` hold the others."""
    files = [(path, path.stat()) for path in directory.glob("*.json")]
    num_bytes = sum(it.st_size for _, it in files)
    for path, it in sorted(files, key=lambda file: file[1].st_mtime_ns):
        if num_bytes <= max_bytes:
            break
        path.unlink(missing_ok=True)
        num_bytes -= it.st_size
