"""The report's tables about verdicts: one line for each variant, then one for each of its tasks.

Numbers are rounded here for the eye; the verdicts were reached on the numbers themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.core.formatting import bytes_text, percent, significant
from pipeline.core.workspace import BASE
from pipeline.gate.profiles import BEFORE_BENCHMARK, Figure, choose, options_of
from pipeline.params.gate import GateParams, Objective, ProfileParams
from pipeline.records.benchmarks import Benchmarks, ServedModel
from pipeline.records.evaluation import EvaluationRecord, TaskScore
from pipeline.records.selection import Choice, DropVerdict, Selection, TaskVerdict, VariantVerdict


@dataclass(frozen=True)
class ControlRow:
    """One engine against the reference engine."""

    engine: str
    kl: str
    kl_interval: str
    top1: str
    perplexity_ratio: str
    largest_difference: str


@dataclass(frozen=True)
class IntervalText:
    """A number and, in small print, its interval; either may be empty."""

    value: str
    interval: str


NOTHING = IntervalText("–", "")
FLOAT_NOISE = 1e-12  # what is left of drops that cancel out


@dataclass(frozen=True)
class VerdictRow:
    """One line of the verdict table; `verdict` is empty for the base."""

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
    """One task of one variant."""

    task: str
    scores: str
    drop: IntervalText
    margin: str
    flips: str
    mcnemar_p: str
    verdict: str


def base_row(selection: Selection) -> VerdictRow:
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
    """`reference` is where the variant is published."""
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
    """Over the tasks, or of the only one."""
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
    return tuple(_task_row(task, it) for task, it in verdict.tasks.items())


def _task_row(task: str, it: TaskVerdict) -> TaskVerdictRow:
    clusters = "" if it.num_clusters == it.num_documents else f", {it.num_clusters:,} passages"
    return TaskVerdictRow(
        task=f"{task} ({it.metric}, {it.num_documents:,} documents{clusters})",
        scores=f"{significant(it.base)} → {significant(it.variant)}",
        drop=IntervalText(signed(it.drop), _bounds(it)),
        margin=f"{it.margin:g}",
        flips=f"{it.right_to_wrong} / {it.wrong_to_right}",
        mcnemar_p="–" if it.mcnemar_p is None else significant(it.mcnemar_p, 2),
        verdict=it.verdict.value,
    )


def _bounds(drop: DropVerdict) -> str:
    return f"{signed(drop.low)} to {signed(drop.high)}"


def _interval(value: float, low: float, high: float, *, digits: int = 3) -> IntervalText:
    return IntervalText(
        significant(value, digits), f"{significant(low, digits)} to {significant(high, digits)}"
    )


def signed(value: float) -> str:
    """A drop: small numbers with a sign of their own, four decimals, more where they vanish."""
    shown = f"{value:.4f}"
    if float(shown):
        return shown
    return "0.0000" if abs(value) < FLOAT_NOISE else f"{value:.1e}"


def gate_sentences(gate: GateParams) -> tuple[str, ...]:
    """What the gate asks, in general and of each class."""
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
        f"{name} (from {it.min_bits:g} bits per quantized weight): margins of tasks × "
        f"{it.margin_factor:g}, mean drop below {it.max_mean_drop:g}, KL to the base at most "
        f"{it.max_kl:g} nats per token, perplexity ratio at most {it.max_perplexity_ratio:g}."
        for name, it in gate.classes.items()
    ]
    return (general, *classes)


def measured_figures(benchmarks: Benchmarks | None) -> dict[str, dict[Objective, Figure]]:
    """What the benchmark says for profiles: most tokens per second, and the median time of a whole
    request with the fewest users."""
    models = benchmarks.models if benchmarks else {}
    return {
        name: {
            Objective.THROUGHPUT: Figure.exact(
                max(it.output_tokens_per_s.median for it in model.loads)
            ),
            Objective.LATENCY: Figure.exact(
                min(model.loads, key=lambda it: it.concurrency).median_of(lambda it: it.e2el_ms.p50)
            ),
        }
        for name, model in models.items()
        if isinstance(model, ServedModel) and model.loads
    }


def choices(
    selection: Selection, benchmarks: Benchmarks | None, profiles: Mapping[str, ProfileParams]
) -> dict[str, Choice]:
    """Return what each profile chose.

    A choice by quality or size is that of `selection.json`. A choice by speed is made here, because
    the benchmark runs after select.
    """
    options = options_of(selection.variants, measured_figures(benchmarks))
    return {
        name: selection.choices[name]
        if profile.best in BEFORE_BENCHMARK and name in selection.choices
        else choose(profile, options)
        for name, profile in profiles.items()
    }


def control_rows(base: EvaluationRecord) -> tuple[ControlRow, ...]:
    return tuple(
        ControlRow(
            engine=f"{it.backend} ({it.backend_version})",
            kl=significant(it.distance.kl),
            kl_interval=f"{significant(it.distance.kl_low)} to {significant(it.distance.kl_high)}",
            top1=percent(it.distance.top1),
            perplexity_ratio=significant(it.distance.perplexity_ratio, 6),
            largest_difference=_largest_difference(base.tasks, it.tasks),
        )
        for it in base.controls.values()
    )


def _largest_difference(base: Mapping[str, TaskScore], own: Mapping[str, TaskScore]) -> str:
    """Of a task's score, engine − reference."""
    differences = {task: own[task].value - base[task].value for task in base if task in own}
    if not differences:
        return "–"
    task = max(differences, key=lambda name: abs(differences[name]))
    return f"{differences[task]:+.4f} on {task}"
