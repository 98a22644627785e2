"""The gate: which variants may be released, decided from their evaluations alone.

Three verdicts. A variant is approved when every task, and their mean, is shown to lose less than
its margin, and the upper ends of the intervals of KL and perplexity ratio stay within their bounds.
It is rejected when a loss beyond a margin is shown, when a lower end is above its bound, or when
its logits are no numbers. Everything else is inconclusive, and says what would decide it.

Pure rules; numbers are compared as they are and rounded only in sentences. The tests are in
`pipeline.gate.paired` and `pipeline.gate.drops`, the words in `pipeline.gate.reasons`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.gate.bounds import bound_verdicts
from pipeline.gate.comparison import Comparison, compare, history_of, task_recovery
from pipeline.gate.drops import (
    MEAN,
    Step,
    after_look,
    combined,
    drop_record,
    drop_verdicts,
    held_drops,
)
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
class Candidate:
    """A variant before the gate, and the base in the engine that scored it.

    `bits_per_weight` is that of the quantized tensors.
    """

    base: Scored
    own: Scored
    format: str
    bits_per_weight: float
    weight_bytes: int


@dataclass(frozen=True)
class Judgement:
    """What the gate finds about one variant; a broken one has only a reason."""

    verdict: Verdict
    reasons: tuple[str, ...]
    tasks: Mapping[str, TaskVerdict]
    mean_drop: DropVerdict | None
    bounds: Mapping[str, BoundVerdict]


def decide(
    base: EvaluationRecord,
    base_weight_bytes: int,
    candidates: Mapping[str, Candidate],
    margins: Mapping[str, float],
    gate: GateParams,
) -> Selection:
    """The verdict on every candidate, in their order, and the choice of every profile.

    `margins` has each task's, as a difference of its metric. Raises InputError when an evaluation
    cannot be compared with the base's.
    """
    figures = {
        name: figures_of(it.own.record.distance, it.weight_bytes) for name, it in candidates.items()
    }
    front = pareto_front(figures, BEFORE_BENCHMARK)
    variants = {
        name: _verdict(it, base_weight_bytes, margins, gate, pareto=name in front)
        for name, it in candidates.items()
    }
    return Selection(
        base_digest=base.artifact_digest,
        base_weight_bytes=base_weight_bytes,
        variants=variants,
        choices=choose_before_benchmark(variants, gate.profiles),
    )


def _verdict(
    candidate: Candidate,
    base_weight_bytes: int,
    margins: Mapping[str, float],
    gate: GateParams,
    *,
    pareto: bool,
) -> VariantVerdict:
    base, own = candidate.base.record, candidate.own.record
    gate_class = gate.class_of(candidate.bits_per_weight)
    if own.broken is None:
        comparison = compare(candidate.base, candidate.own, gate.sequential)
        judged = judge(comparison, margins, gate.classes[gate_class], gate)
    else:
        judged = Judgement(Verdict.REJECTED, (f"broken: {own.broken}",), {}, None, {})
    recoveries = {task: task_recovery(base.tasks[task], it) for task, it in own.tasks.items()}
    return VariantVerdict(
        verdict=judged.verdict,
        reasons=judged.reasons,
        format=candidate.format,
        gate_class=gate_class,
        bits_per_weight=candidate.bits_per_weight,
        tasks=dict(judged.tasks),
        mean_drop=judged.mean_drop,
        bounds=dict(judged.bounds),
        distance=own.distance,
        recovery=fmean(recoveries.values()) if recoveries else None,
        task_recovery=recoveries,
        documents_share=_documents_share(base, own),
        weight_bytes=candidate.weight_bytes,
        size_ratio=candidate.weight_bytes / base_weight_bytes,
        pareto=pareto,
        artifact_digest=own.artifact_digest,
    )


def _documents_share(base: EvaluationRecord, own: EvaluationRecord) -> float:
    """Of the base's documents, how many the variant was scored on."""
    planned = sum(it.num_documents for it in base.tasks.values())
    return sum(it.num_documents for it in own.tasks.values()) / planned


def judge(
    comparison: Comparison, margins: Mapping[str, float], limits: GateClass, gate: GateParams
) -> Judgement:
    """The verdict on a variant that could be scored, with its numbers."""
    held = held_drops(comparison.history, class_margins(margins, limits), gate.sequential)
    verdicts = drop_verdicts(held, gate.error_rate)
    records = {
        name: drop_record(
            it,
            verdicts[name],
            error_rate=gate.error_rate,
            num_drops=len(held),
            power=gate.power,
        )
        for name, it in held.items()
    }
    bounds = bound_verdicts(
        comparison.distance, limits, num_tokens=comparison.num_tokens, power=gate.power
    )
    verdict = combined([*verdicts.values(), *(it.verdict for it in bounds.values())])
    return Judgement(
        verdict=verdict,
        reasons=reasons_for(verdict, records, bounds),
        tasks={
            task: _task_verdict(records[task], looks[-1], comparison.scores[task])
            for task, looks in comparison.history.items()
        },
        mean_drop=records.get(MEAN),
        bounds=bounds,
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
    """Whether variant `name`, scored on `rows` so far, needs more documents, and of which tasks.

    For a sequential evaluation, after each look; `decide` comes to the same verdict later.
    """
    assert gate.sequential is not None, "without it all documents are scored at once"
    history = history_of(base, rows, gate.sequential, name=name)
    return after_look(history, class_margins(margins, limits), gate.sequential, gate.error_rate)


def class_margins(margins: Mapping[str, float], limits: GateClass) -> dict[str, float]:
    """The margin of each task, and of their mean, for a class of variants."""
    scaled = {task: margin * limits.margin_factor for task, margin in margins.items()}
    return scaled | {MEAN: limits.max_mean_drop}


def _task_verdict(
    record: DropVerdict, pairs: PairedTask, scores: tuple[TaskScore, TaskScore]
) -> TaskVerdict:
    base, own = scores
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
