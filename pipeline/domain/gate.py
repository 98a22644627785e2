"""The gate: which variants may be released, decided from their evaluations alone.

Pure rules. Numbers are compared as they are and only then written into sentences, with as many
digits as it takes to tell them from their threshold. Reading files is the stage's business.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from pipeline.domain.errors import InputError
from pipeline.domain.evaluated import (
    Distance,
    EvaluationRecord,
    Selection,
    TaskScore,
    VariantVerdict,
    Verdict,
)
from pipeline.domain.params import GateParams

SHOWN_DIGITS = 3
MOST_DIGITS = 17
"""Enough to tell any two float64 numbers apart."""


@dataclass(frozen=True)
class Candidate:
    """A variant before the gate: its evaluation, its format and the size of its weights."""

    evaluation: EvaluationRecord
    format: str
    weight_bytes: int


@dataclass(frozen=True)
class Check:
    """One comparison of the gate, as a sentence."""

    passed: bool
    sentence: str


def decide(
    base: EvaluationRecord,
    base_weight_bytes: int,
    candidates: Mapping[str, Candidate],
    gate: GateParams,
) -> Selection:
    """The verdict on every candidate, in their order.

    Raises InputError when an evaluation cannot be compared with the base's.
    """
    front = _pareto_front(candidates)
    return Selection(
        base_digest=base.artifact_digest,
        base_weight_bytes=base_weight_bytes,
        variants={
            name: _verdict(base, base_weight_bytes, candidate, gate, pareto=name in front)
            for name, candidate in candidates.items()
        },
    )


def _verdict(
    base: EvaluationRecord,
    base_weight_bytes: int,
    candidate: Candidate,
    gate: GateParams,
    *,
    pareto: bool,
) -> VariantVerdict:
    own = candidate.evaluation
    distance = _comparable_distance(base, own)
    recoveries = {task: task_recovery(base.tasks[task], own.tasks[task]) for task in base.tasks}
    recovery = _mean_recovery(base, recoveries)
    checks = _checks(gate, recovery, recoveries, distance.kl)
    failed = [check for check in checks if not check.passed]
    return VariantVerdict(
        verdict=Verdict.REJECTED if failed else Verdict.APPROVED,
        reasons=tuple(check.sentence for check in failed or checks),
        format=candidate.format,
        recovery=recovery,
        task_recovery=recoveries,
        kl=distance.kl,
        top1=distance.top1,
        perplexity_ratio=distance.perplexity_ratio,
        weight_bytes=candidate.weight_bytes,
        size_ratio=candidate.weight_bytes / base_weight_bytes,
        pareto=pareto,
        artifact_digest=own.artifact_digest,
    )


def task_recovery(base: TaskScore, variant: TaskScore) -> float:
    """How much of the base's score the variant has: 1 is all, above 1 is better than the base.

    Variant ÷ base, or base ÷ variant where lower is better. A base that scores nothing has nothing
    to lose, and a variant without any error cannot be better: both count as 1.
    """
    if base.higher_is_better:
        return variant.value / base.value if base.value > 0 else 1.0
    return base.value / variant.value if variant.value > 0 else 1.0


def _mean_recovery(base: EvaluationRecord, recoveries: Mapping[str, float]) -> float:
    """Over the tasks where higher is better; over all of them when there is none."""
    counting = [task for task, score in base.tasks.items() if score.higher_is_better]
    return fmean(recoveries[task] for task in counting or recoveries)


def _checks(
    gate: GateParams, recovery: float, recoveries: Mapping[str, float], kl: float
) -> list[Check]:
    worst = min(recoveries, key=lambda task: recoveries[task])
    too_low = [task for task, value in recoveries.items() if value < gate.min_task_recovery]
    return [
        _at_least("mean recovery", recovery, gate.min_recovery),
        *(
            _at_least(f"recovery on {task}", recoveries[task], gate.min_task_recovery)
            for task in too_low or [worst]
        ),
        _at_most("KL", kl, "nats per token", gate.max_kl),
    ]


def _at_least(what: str, value: float, limit: float) -> Check:
    shown = told_apart(value, limit)
    return Check(value >= limit, f"{what} {shown}, at least {limit:g} required")


def _at_most(what: str, value: float, unit: str, limit: float) -> Check:
    shown = told_apart(value, limit)
    return Check(value <= limit, f"{what} {shown} {unit}, at most {limit:g} allowed")


def told_apart(value: float, limit: float) -> str:
    """`value` with at least three digits, and as many as it takes not to read like `limit`."""
    for digits in range(SHOWN_DIGITS, MOST_DIGITS):
        shown = f"{value:.{digits}g}"
        if value == limit or float(shown) != limit:
            return shown
    return f"{value:.{MOST_DIGITS}g}"


def _comparable_distance(base: EvaluationRecord, own: EvaluationRecord) -> Distance:
    """The variant's distance to the base. Raises InputError when they were not scored alike."""
    comparisons = {
        "base": own.base_digest == base.artifact_digest and own.distance is not None,
        "suite": own.suite == base.suite,
        "set of tasks": _task_facts(own) == _task_facts(base),
        "text": own.token_ids_sha256 == base.token_ids_sha256,
    }
    for what, is_same in comparisons.items():
        if not is_same:
            raise InputError(
                f"{own.name}: evaluated with another {what} than the base; run "
                f"`quantline evaluate base` and `quantline evaluate {own.name}` again"
            )
    assert own.distance is not None
    return own.distance


def _task_facts(evaluation: EvaluationRecord) -> dict[str, tuple[str, str, int]]:
    return {
        name: (score.metric, score.version, score.num_documents)
        for name, score in evaluation.tasks.items()
    }


def _pareto_front(candidates: Mapping[str, Candidate]) -> set[str]:
    """Names of the candidates that no other one beats in size and KL together."""
    points = {
        name: (candidate.weight_bytes, candidate.evaluation.distance.kl)
        for name, candidate in candidates.items()
        if candidate.evaluation.distance is not None
    }
    return {
        name
        for name, own in points.items()
        if not any(
            other != own and other[0] <= own[0] and other[1] <= own[1] for other in points.values()
        )
    }
