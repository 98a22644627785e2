"""What evaluate and select leave behind: scores, distances to the base, and verdicts."""

from enum import StrEnum

from pipeline.domain.manifest import Sha256
from pipeline.domain.record import Record


class TaskScore(Record):
    """One lm-eval task. `stderr` is lm-eval's own; null where it has none (perplexity)."""

    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool
    num_documents: int
    version: str


class Distance(Record):
    """How far a variant's next-token distributions are from the base's on the same tokens.

    KL is KL(base ‖ variant) in nats per token; `kl_low` and `kl_high` bound its mean with 95 %
    confidence, by windows; `top1` is the share of tokens where both put the same token first.
    """

    kl: float
    kl_low: float
    kl_high: float
    kl_median: float
    kl_p99: float
    kl_max: float
    top1: float


class DocumentRecord(Record):
    """One row of `documents.jsonl`: what the model answered to one document of a task.

    `logprobs` are the natural log-probabilities of the answer choices (or of the whole text), in
    the order of the task, null where the model wrote the answer itself; that answer is `generated`.
    A metric is a number, or the numbers that the task's aggregation needs (log-likelihood, words).
    """

    task: str
    doc_id: int
    doc_hash: str
    prompt_hash: str
    target: str
    logprobs: tuple[float, ...] | None
    generated: str | None
    metrics: dict[str, float | tuple[float, ...]]


class EvaluationRecord(Record):
    """The evaluation of the base or of one variant.

    `perplexity` is exp of the mean negative log-likelihood on the held-out windows; `distance` is
    null for the base itself. `num_tokens` counts the predicted tokens of those windows: all but the
    first of each.
    """

    name: str
    artifact_digest: Sha256
    base_digest: Sha256
    backend: str
    backend_version: str
    suite: str
    tasks: dict[str, TaskScore]
    perplexity: float
    distance: Distance | None
    text_sha256: Sha256
    token_ids_sha256: Sha256
    num_tokens: int
    documents_sha256: Sha256


class Verdict(StrEnum):
    APPROVED = "approved"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"


class VariantVerdict(Record):
    """Whether a variant may be released, with every number the decision used.

    `recovery` is the mean of `task_recovery`; a value above 1 means better than the base.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    format: str
    recovery: float
    task_recovery: dict[str, float]
    kl: float
    top1: float
    perplexity_ratio: float
    weight_bytes: int
    size_ratio: float
    pareto: bool
    artifact_digest: Sha256


class Selection(Record):
    """`selection.json`: the verdict on every variant."""

    base_digest: Sha256
    base_weight_bytes: int
    variants: dict[str, VariantVerdict]

    def approved(self) -> tuple[str, ...]:
        """Names of the approved variants, in the order of `params.yaml`."""
        return tuple(name for name, it in self.variants.items() if it.verdict is Verdict.APPROVED)
