"""What has been scored once is not scored again: results kept by the digest of all they depend on.

A result is a file `artifacts/cache/KEY.json`, where KEY is the sha256 of the model's digest, the
digest of what was asked, the engine and its version, and this program's code. The files are
validated records, appear whole, and may be deleted at any time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.adapters.files import work_key, write_record
from pipeline.adapters.lm_eval_run import Rows
from pipeline.adapters.scorer import Scorer
from pipeline.domain.evaluated import Distance, DocumentRecord
from pipeline.domain.record import Record


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
        self, text_digest: str, reference: str, compute: Callable[[], ScoredText]
    ) -> ScoredText:
        """`reference` is the digest of the model that the distance is to."""
        return self._kept(ScoredText, (text_digest, reference), compute)

    def _kept(
        self, kind: type[AnyRecord], facts: tuple[str, ...], compute: Callable[[], AnyRecord]
    ) -> AnyRecord:
        engine = (self.scorer.backend, self.scorer.backend_version)
        key = work_key(kind.__name__, *engine, self.artifact_digest, *self.facts, *facts)
        path = self.directory / f"{key}.json"
        if path.exists():
            return kind.from_bytes(path.read_bytes(), source=str(path))
        result = compute()
        write_record(path, result)
        return result
