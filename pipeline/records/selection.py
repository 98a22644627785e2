"""The records of select: verdicts with all their numbers, and the choice of each profile.

`pipeline.gate.verdicts` and `pipeline.gate.profiles` make them.
"""

from enum import StrEnum

from pipeline.core.file_records import Sha256
from pipeline.core.record import Record
from pipeline.records.evaluation import Distance


class Verdict(StrEnum):
    """The decision on a variant, or on one of its drops or distances."""

    APPROVED = "approved"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"


class DropVerdict(Record):
    """The verdict on a drop and its margin, in units of the metric; a larger drop is worse.

    `low` and `high` are one-sided bounds at `level` each. `high` below the margin approves.
    Rejection is stricter than `low` where several drops are tested. `p_below` and `p_above` are the
    p-values of the hypotheses "at least the margin" and "at most the margin". `further_documents`
    is the number that would decide an inconclusive drop; null for other verdicts, and where no
    number would.
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
    """The verdict on one task.

    `right_to_wrong` and `wrong_to_right` count the documents that got worse and better. `mcnemar_p`
    is the exact two-sided p-value of no drop at all, null where the metric is not 0 or 1.
    `num_clusters` is less than `num_documents` where documents share a passage.
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
    """The verdict on a distance and its `limit`, with its 95 % interval.

    `high` within the limit approves, `low` above it rejects. `further_tokens` is the number of
    tokens of held-out text that would decide an inconclusive distance.
    """

    verdict: Verdict
    value: float
    low: float
    high: float
    limit: float
    further_tokens: int | None


class VariantVerdict(Record):
    """The verdict on a variant, with every number that was used.

    `gate_class` is the class of `gate.classes` that its `bits_per_weight` reach; they are those of
    its quantized tensors. `mean_drop` is over the tasks, null when there is only one. `bounds` are
    those of KL and the perplexity ratio. A broken variant, whose logits are not numbers, has only
    the reason. `recovery` is the mean of `task_recovery`, variant ÷ base, which is above 1 for a
    better score than the base's; no verdict depends on it. `documents_share` is below 1 where a
    sequential evaluation stopped early.
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
    """The choice of a profile: a variant or null, and the reason."""

    variant: str | None
    reason: str


class Selection(Record):
    """All of `selection.json`: the verdict on every variant, and the choice of each profile."""

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
    """All of `approved.json`: the approved variants in order, by name with their digests.

    It is apart from `selection.json`, so that a change of wording, of a profile or of a margin
    that changes no verdict does not run benchmark again.
    """

    base_digest: Sha256
    variants: dict[str, Sha256]
