"""Define the records of select: verdicts with all their numbers, and the choice of each profile.

They are made in `pipeline.gate.verdicts` and `pipeline.gate.profiles`.
"""

from enum import StrEnum

from pipeline.core.file_records import Sha256
from pipeline.core.record import Record
from pipeline.records.evaluation import Distance


class Verdict(StrEnum):
    APPROVED = "approved"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"


class DropVerdict(Record):
    """Decide on a drop against its margin, in the metric's own units; more is worse.

    `low` and `high` are one-sided bounds at `level` each: high below the margin approves. Rejection
    is stricter than `low` where several drops are tested. `p_below` and `p_above` are the p-values
    against "at least the margin" and "at most the margin". `further_documents` would decide what is
    inconclusive; null where it is not, and where no number would.
    """

    verdict: Verdict
    drop: float
    low: float
    high: float
    level: float
    margin: float
    p_below: float
    p_above: float
    further_documents: int | None


class TaskVerdict(DropVerdict):
    """Decide on one task. `right_to_wrong` and `wrong_to_right` count worse and better documents.

    `mcnemar_p` is the exact two-sided p-value of no drop at all, null where the metric is not 0 or
    1. `num_clusters` is less than `num_documents` where documents share a passage.
    """

    metric: str
    base: float
    variant: float
    num_documents: int
    num_clusters: int
    right_to_wrong: int
    wrong_to_right: int
    mcnemar_p: float | None


class BoundVerdict(Record):
    """Decide on a distance, with its 95 % interval, against `limit`.

    `high` within the limit approves, `low` above it rejects. `further_tokens` of held-out text
    would decide what is inconclusive.
    """

    verdict: Verdict
    value: float
    low: float
    high: float
    limit: float
    further_tokens: int | None


class VariantVerdict(Record):
    """Decide whether a variant may be released, with every number that was used.

    `gate_class` is the class of `gate.classes` that `bits_per_weight`, of its quantized tensors,
    reaches. `mean_drop` is over the tasks, null when there is one only; `bounds` are those of KL
    and the perplexity ratio. A broken variant, whose logits are not numbers, has only the reason.
    `recovery` is the mean of `task_recovery`, variant ÷ base: above 1 is better than the base; it
    decides nothing. `documents_share` is below 1 where a sequential evaluation stopped early.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    format: str
    gate_class: str
    bits_per_weight: float
    tasks: dict[str, TaskVerdict]
    mean_drop: DropVerdict | None
    bounds: dict[str, BoundVerdict]
    distance: Distance | None
    recovery: float | None
    task_recovery: dict[str, float]
    documents_share: float
    weight_bytes: int
    size_ratio: float
    pareto: bool
    artifact_digest: Sha256


class Choice(Record):
    """Record the choice of a profile: a variant, or null, and why."""

    variant: str | None
    reason: str


class Selection(Record):
    """Record `selection.json`: the verdict on every variant, and the choice of each profile."""

    base_digest: Sha256
    base_weight_bytes: int
    variants: dict[str, VariantVerdict]
    choices: dict[str, Choice]

    def approved(self) -> tuple[str, ...]:
        """Return the names of the approved variants, in the order of `params.yaml`."""
        return tuple(
            name for name, variant in self.variants.items() if variant.verdict is Verdict.APPROVED
        )


class Approved(Record):
    """Record `approved.json`: digest by name of the variants that may be released, in order.

    Apart from `selection.json`, so that a word, a profile or a margin that changes no verdict
    serves nothing again.
    """

    base_digest: Sha256
    variants: dict[str, Sha256]
