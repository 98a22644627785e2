"""Decide from evaluations alone which variants may be released.

There are three verdicts. A variant is approved when the tests show that every task, and their mean,
loses less than its margin, and the upper ends of the intervals of KL and perplexity ratio stay
within their bounds. It is rejected when a loss beyond a margin is shown, when a lower end is above
its bound, or when its logits are not numbers. Every other variant is inconclusive, and its reasons
say how many more documents or tokens would decide.

The rules are pure. Numbers are compared as they are and rounded only in sentences. The tests are in
`pipeline.gate.paired` and `pipeline.gate.drops`, the sentences in `pipeline.gate.reasons`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.gate.bounds import bound_verdicts
from pipeline.gate.comparison import comparable_distance, history_of, task_recovery
from pipeline.gate.drops import MEAN, Step, after_look, combined, drop_records
from pipeline.gate.flips import mcnemar_p
from pipeline.gate.paired import PairedTask
from pipeline.gate.profiles import (
    BEFORE_BENCHMARK,
    choose_before_benchmark,
    figures_of,
    pareto_front,
)
from pipeline.gate.reasons import reasons_for
from pipeline.params.gate import GateClass, GateParams
from pipeline.records.evaluation import DocumentRecord, EvaluationRecord, Scored, TaskScore
from pipeline.records.selection import (
    BoundVerdict,
    DropVerdict,
    Selection,
    TaskVerdict,
    VariantVerdict,
    Verdict,
)


@dataclass(frozen=True)
class ScoredVariant:
    """The evaluation of a variant, and that of the base in the engine that scored it.

    `bits_per_weight` is that of the quantized tensors.
    """

    base: Scored
    own: Scored
    format: str
    bits_per_weight: float
    weight_bytes: int


def decide(
    base: EvaluationRecord,
    base_weight_bytes: int,
    scored_variants: Mapping[str, ScoredVariant],
    margins: Mapping[str, float],
    gate: GateParams,
) -> Selection:
    """Decide on every variant, and choose one for every profile.

    `margins` has the margin of each task, as a difference of its metric. Raises InputError when an
    evaluation cannot be compared with the base's.
    """
    figures = {
        name: figures_of(scored.own.record.distance, scored.weight_bytes)
        for name, scored in scored_variants.items()
    }
    front = pareto_front(figures, BEFORE_BENCHMARK)
    variants = {
        name: _verdict(scored, base_weight_bytes, margins, gate, pareto=name in front)
        for name, scored in scored_variants.items()
    }
    return Selection(
        base_digest=base.artifact_digest,
        base_weight_bytes=base_weight_bytes,
        variants=variants,
        choices=choose_before_benchmark(variants, gate.profiles),
    )


def _verdict(
    scored: ScoredVariant,
    base_weight_bytes: int,
    margins: Mapping[str, float],
    gate: GateParams,
    *,
    pareto: bool,
) -> VariantVerdict:
    base, own = scored.base.record, scored.own.record
    gate_class = gate.class_of(scored.bits_per_weight)
    reasons: tuple[str, ...] = (f"broken: {own.broken}",)
    verdict = Verdict.REJECTED
    tasks: dict[str, TaskVerdict] = {}
    mean_drop: DropVerdict | None = None
    bounds: dict[str, BoundVerdict] = {}
    if own.broken is None:
        limits = gate.classes[gate_class]
        distance = comparable_distance(base, own)
        history = history_of(scored.base, scored.own.rows, gate.sequential, name=own.name)
        drops = drop_records(history, class_margins(margins, limits), gate)
        mean_drop = drops.get(MEAN)
        tasks = {
            task: _task_verdict(drops[task], looks[-1], base.tasks[task], own.tasks[task])
            for task, looks in history.items()
        }
        bounds = bound_verdicts(distance, limits, num_tokens=own.num_tokens, power=gate.power)
        verdict = combined(
            [
                *(drop.verdict for drop in drops.values()),
                *(bound.verdict for bound in bounds.values()),
            ]
        )
        reasons = reasons_for(verdict, drops, bounds)
    recoveries = {task: task_recovery(base.tasks[task], score) for task, score in own.tasks.items()}
    num_planned = sum(score.num_documents for score in base.tasks.values())
    num_scored = sum(score.num_documents for score in own.tasks.values())
    return VariantVerdict(
        verdict=verdict,
        reasons=reasons,
        format=scored.format,
        gate_class=gate_class,
        bits_per_weight=scored.bits_per_weight,
        tasks=tasks,
        mean_drop=mean_drop,
        bounds=bounds,
        distance=own.distance,
        recovery=fmean(recoveries.values()) if recoveries else None,
        task_recovery=recoveries,
        documents_share=num_scored / num_planned,
        weight_bytes=scored.weight_bytes,
        size_ratio=scored.weight_bytes / base_weight_bytes,
        pareto=pareto,
        artifact_digest=own.artifact_digest,
    )


def next_step(
    base: Scored,
    rows: Sequence[DocumentRecord],
    margins: Mapping[str, float],
    limits: GateClass,
    gate: GateParams,
    *,
    name: str,
) -> Step:
    """Decide after a look whether variant `name`, scored on `rows` so far, needs more documents.

    `decide` later makes the same verdict from the same rows.
    """
    assert gate.sequential is not None, "without it all documents are scored at once"
    history = history_of(base, rows, gate.sequential, name=name)
    return after_look(history, class_margins(margins, limits), gate.sequential, gate.error_rate)


def class_margins(margins: Mapping[str, float], limits: GateClass) -> dict[str, float]:
    """Return the margin of each task, and of their mean, for a class of variants."""
    scaled = {task: margin * limits.margin_factor for task, margin in margins.items()}
    return scaled | {MEAN: limits.max_mean_drop}


def _task_verdict(
    record: DropVerdict, pairs: PairedTask, base: TaskScore, own: TaskScore
) -> TaskVerdict:
    return TaskVerdict(
        **record.model_dump(),
        metric=base.metric,
        base=base.value,
        variant=own.value,
        num_documents=pairs.num_documents,
        num_clusters=pairs.num_clusters,
        right_to_wrong=pairs.flips.right_to_wrong,
        wrong_to_right=pairs.flips.wrong_to_right,
        mcnemar_p=mcnemar_p(pairs.flips) if pairs.binary else None,
    )
