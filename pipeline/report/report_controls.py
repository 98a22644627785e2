"""The report's table of engines: the base itself in each engine that judges variants.

What differs there is the engine's doing and not that of any quantization.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.core.formatting import percent, significant
from pipeline.records.evaluation import EvaluationRecord, TaskScore


@dataclass(frozen=True)
class ControlRow:
    """One engine against the reference engine."""

    engine: str
    kl: str
    kl_interval: str
    top1: str
    perplexity_ratio: str
    largest_difference: str


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
