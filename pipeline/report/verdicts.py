"""Make the report's tables of verdicts: a row for each variant, then one for each of its tasks.

Numbers are rounded here for reading. The verdicts were reached on the exact numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.core.formatting import bytes_text, percent, significant
from pipeline.core.workspace import BASE
from pipeline.params.gate import GateParams
from pipeline.records.evaluation import EvaluationRecord, TaskScore
from pipeline.records.selection import DropVerdict, Selection, TaskVerdict, VariantVerdict


@dataclass(frozen=True)
class ControlRow:
    """Hold the distance of the base in one engine from the base in the reference engine."""

    engine: str
    kl: str
    kl_interval: str
    top1: str
    perplexity_ratio: str
    largest_difference: str


@dataclass(frozen=True)
class IntervalText:
    """Hold a number and its interval, which is shown in small print. Either may be empty."""

    value: str
    interval: str


NOTHING = IntervalText("–", "")
FLOAT_NOISE = 1e-12  # drops that cancel out leave rounding errors below this


@dataclass(frozen=True)
class VerdictRow:
    """Hold a row of the verdict table. `verdict` is empty for the base."""

    name: str
    format: str
    verdict: str
    drop: IntervalText
    recovery: str
    kl: IntervalText
    top1: str
    perplexity_ratio: IntervalText
    size: IntervalText
    reasons: tuple[str, ...]
    reference: str | None


@dataclass(frozen=True)
class TaskVerdictRow:
    """Hold one task of one variant."""

    task: str
    scores: str
    drop: IntervalText
    margin: str
    flips: str
    mcnemar_p: str
    verdict: str


def base_row(selection: Selection) -> VerdictRow:
    """Return the row of the base, which loses nothing against itself."""
    return VerdictRow(
        name=BASE,
        format="original",
        verdict="",
        drop=IntervalText("0", ""),
        recovery=percent(1.0),
        kl=IntervalText("0", ""),
        top1=percent(1.0),
        perplexity_ratio=IntervalText(significant(1.0, 4), ""),
        size=IntervalText(bytes_text(selection.base_weight_bytes), ""),
        reasons=(),
        reference=None,
    )


def verdict_row(name: str, verdict: VariantVerdict, *, reference: str | None) -> VerdictRow:
    """Return the row of a variant. `reference` is where the variant is published."""
    distance = verdict.distance
    size_ratio = f"{percent(verdict.size_ratio)} of base"
    return VerdictRow(
        name=name,
        format=verdict.format,
        verdict=verdict.verdict.value,
        drop=_mean_drop(verdict),
        recovery="–" if verdict.recovery is None else percent(verdict.recovery),
        kl=_interval(distance.kl, distance.kl_low, distance.kl_high) if distance else NOTHING,
        top1=percent(distance.top1) if distance else "–",
        perplexity_ratio=_interval(
            distance.perplexity_ratio,
            distance.perplexity_ratio_low,
            distance.perplexity_ratio_high,
            digits=4,
        )
        if distance
        else NOTHING,
        size=IntervalText(bytes_text(verdict.weight_bytes), size_ratio),
        reasons=(*verdict.reasons, *_stopped_early(verdict)),
        reference=reference,
    )


def _mean_drop(verdict: VariantVerdict) -> IntervalText:
    """Return the mean drop over the tasks, or the drop of the only task."""
    drops = [verdict.mean_drop] if verdict.mean_drop else list(verdict.tasks.values())
    if not drops:
        return NOTHING
    (drop,) = drops
    return IntervalText(signed(drop.drop), f"{_bounds(drop)}, margin {drop.margin:g}")


def _stopped_early(verdict: VariantVerdict) -> tuple[str, ...]:
    if verdict.documents_share == 1 or not verdict.tasks:
        return ()
    return (
        f"the evaluation stopped after {percent(verdict.documents_share)} of the documents, "
        "because the result was clear",
    )


def task_verdict_rows(verdict: VariantVerdict) -> tuple[TaskVerdictRow, ...]:
    """Return a row for each task of a variant."""
    return tuple(_task_row(name, task) for name, task in verdict.tasks.items())


def _task_row(name: str, task: TaskVerdict) -> TaskVerdictRow:
    same = task.num_clusters == task.num_documents
    clusters = "" if same else f", {task.num_clusters:,} passages"
    return TaskVerdictRow(
        task=f"{name} ({task.metric}, {task.num_documents:,} documents{clusters})",
        scores=f"{significant(task.base)} → {significant(task.variant)}",
        drop=IntervalText(signed(task.drop), _bounds(task)),
        margin=f"{task.margin:g}",
        flips=f"{task.right_to_wrong} / {task.wrong_to_right}",
        mcnemar_p="–" if task.mcnemar_p is None else significant(task.mcnemar_p, 2),
        verdict=task.verdict.value,
    )


def _bounds(drop: DropVerdict) -> str:
    return f"{signed(drop.low)} to {signed(drop.high)}"


def _interval(value: float, low: float, high: float, *, digits: int = 3) -> IntervalText:
    return IntervalText(
        significant(value, digits), f"{significant(low, digits)} to {significant(high, digits)}"
    )


def signed(value: float) -> str:
    """Return a drop with four decimals, or in scientific notation where these would all be 0."""
    shown = f"{value:.4f}"
    if float(shown):
        return shown
    return "0.0000" if abs(value) < FLOAT_NOISE else f"{value:.1e}"


def gate_sentences(gate: GateParams) -> tuple[str, ...]:
    """Return what the gate demands of every variant, then of each class."""
    error = percent(gate.error_rate)
    general = (
        "A variant is approved when the test shows that every task, and the mean over tasks, loses "
        "less than its margin. It is rejected when the test shows a larger loss. Otherwise it is "
        f"inconclusive. Wrong approvals and wrong rejections happen at most {error} of the time "
        "each. A drop is the base's score minus the variant's score on the same documents. The "
        f"small numbers are one-sided bounds of drops, each at {percent(1 - gate.error_rate)} "
        "confidence, and 95 % intervals of KL and of the perplexity ratio. Flips count the "
        "documents that got worse and those that got better. McNemar's p tests whether nothing "
        "changed."
    )
    classes = [
        f"{name} (from {limits.min_bits:g} bits per quantized weight): margins of tasks × "
        f"{limits.margin_factor:g}, mean drop below {limits.max_mean_drop:g}, KL to the base at "
        f"most {limits.max_kl:g} nats per token, perplexity ratio at most "
        f"{limits.max_perplexity_ratio:g}."
        for name, limits in gate.classes.items()
    ]
    return (general, *classes)


def control_rows(base: EvaluationRecord) -> tuple[ControlRow, ...]:
    """Return a row for each engine that scored the base beside the reference engine."""
    return tuple(
        ControlRow(
            engine=f"{control.backend} ({control.backend_version})",
            kl=significant(control.distance.kl),
            kl_interval=(
                f"{significant(control.distance.kl_low)} to {significant(control.distance.kl_high)}"
            ),
            top1=percent(control.distance.top1),
            perplexity_ratio=significant(control.distance.perplexity_ratio, 6),
            largest_difference=_largest_difference(base.tasks, control.tasks),
        )
        for control in base.controls.values()
    )


def _largest_difference(base: Mapping[str, TaskScore], own: Mapping[str, TaskScore]) -> str:
    """Return the largest difference of a task's score, engine − reference."""
    differences = {task: own[task].value - base[task].value for task in base if task in own}
    if not differences:
        return "–"
    task = max(differences, key=lambda name: abs(differences[name]))
    return f"{differences[task]:+.4f} on {task}"
