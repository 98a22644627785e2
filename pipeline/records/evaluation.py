"""The records of evaluate: scores, rows of documents, and distances to the base."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from pipeline.core.file_records import Sha256
from pipeline.core.record import Record

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Engine:
    """The engine that computed scores, its version, and the kind of device that it ran on.

    Only scores of equal engines are compared, so that a difference comes from the models.
    """

    name: str
    version: str
    device: str

    def __str__(self) -> str:
        return f"{self.name} ({self.version}) on {self.device}"


class TaskScore(Record):
    """The score of one lm-eval task. `stderr` is lm-eval's, null where it has none (perplexity)."""

    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool
    num_documents: int
    version: str


class Distance(Record):
    """The distance of a variant's next-token distributions from the base's.

    The same engine computed both, except in a `Control`, which compares two engines. `kl` is the
    mean of KL(base ‖ variant) in nats per token. Its percentiles and its maximum are over tokens;
    `kl_max_text` is the text before the maximum, with the predicted token last. `top1` is the share
    of tokens for which both rank the same token first. `perplexity_ratio` is variant ÷ base. The
    mean KL and the ratio have 95 % intervals over windows. `probability_change` is the change of
    the probability of the correct token, variant − base: its mean and its root mean square.
    """

    kl: float
    kl_low: float
    kl_high: float
    kl_median: float
    kl_p99: float
    kl_p999: float
    kl_max: float
    kl_max_text: str
    top1: float
    perplexity_ratio: float
    perplexity_ratio_low: float
    perplexity_ratio_high: float
    probability_change: float
    probability_change_rms: float


class DocumentRecord(Record):
    """One row of `documents.jsonl`: the model's answer to one document of a task.

    `logprobs` are the natural log-probabilities of the answer choices (or of the whole text), in
    the order of the task, null where the model wrote the answer itself; that answer is `generated`.
    Documents with equal `cluster` share a passage, so that their answers depend on each other; a
    document that shares none has its own `doc_hash` there. A metric is a number, or the numbers
    that the task's aggregation needs (log-likelihood, words).
    """

    task: str
    doc_id: int
    doc_hash: str
    cluster: str
    prompt_hash: str
    target: str
    logprobs: tuple[float, ...] | None
    generated: str | None
    metrics: dict[str, float | tuple[float, ...]]


class Control(Record):
    """The scores of the base in another engine that scores variants.

    `distance` is to the base in transformers, and shows the effect of the engine alone. Variants in
    this engine are compared with the rows of its documents, whose digest is `documents_sha256`.
    `device` is cpu or cuda.
    """

    backend: str
    backend_version: str
    device: str
    artifact_digest: Sha256
    tasks: dict[str, TaskScore]
    perplexity: float
    distance: Distance
    documents_sha256: Sha256

    @property
    def engine(self) -> Engine:
        return Engine(self.backend, self.backend_version, self.device)


class EvaluationRecord(Record):
    """The evaluation of the base or of one variant.

    `device` is cpu or cuda. `perplexity` is exp of the mean negative log-likelihood on the held-out
    windows; `distance` is to the base in the same engine, and null for the base itself.
    `num_tokens` counts the predicted tokens of those windows: all but the first of each. `broken`
    says why a variant cannot be scored at all; it then has no tasks, perplexity and distance.
    `controls` are by engine, and only the base has them. `template_date` is what the chat template
    was told when it asked for today's date; null where no task was asked through one that asks.
    """

    name: str
    artifact_digest: Sha256
    base_digest: Sha256
    backend: str
    backend_version: str
    device: str
    suite: str
    tasks: dict[str, TaskScore]
    perplexity: float | None
    distance: Distance | None
    text_sha256: Sha256
    token_ids_sha256: Sha256
    num_tokens: int
    documents_sha256: Sha256
    broken: str | None
    controls: dict[str, Control]
    template_date: date | None

    @property
    def engine(self) -> Engine:
        return Engine(self.backend, self.backend_version, self.device)


Rows = Sequence[DocumentRecord]


@dataclass(frozen=True)
class Scored:
    """An evaluation with its rows."""

    record: EvaluationRecord
    rows: Rows
