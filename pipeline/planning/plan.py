"""The plan of a run: the memory, disk and time of its stages, and whether a machine has them.

Time is the work of each stage divided by a speed that was measured on the machine. It is an
estimate, correct within about a factor of TIME_FACTOR.
"""

from dataclasses import dataclass

from pipeline.core.formatting import NBSP, bytes_text
from pipeline.core.workspace import BASE
from pipeline.params.params import Params
from pipeline.planning.quantize_need import quantize_need
from pipeline.planning.source import Source, Speed
from pipeline.planning.stage_needs import (
    LIGHT_SECONDS,
    StageNeed,
    benchmark_need,
    calibrate_need,
    disk_seconds,
    evaluate_need,
    fetch_need,
    variant_bytes,
)

TIME_FACTOR = 3


@dataclass(frozen=True)
class Capacity:
    """The free memory and disk of this machine, in bytes.

    `gpu_memory` is None without a GPU. `written` is the size of the files under `artifacts/`.
    """

    memory: int
    gpu_memory: int | None
    disk: int
    written: int


def predict(source: Source, params: Params, *, suite_tokens: int) -> tuple[StageNeed, ...]:
    """Predict the needs of every stage, in the order of a run.

    Every variant is assumed to be approved. `suite_tokens` is the number of tokens that the tasks
    of the suite ask to be scored.
    """
    released = sum(variant_bytes(source.shape, recipe) for recipe in params.variants.values())
    handling = LIGHT_SECONDS + 3 * disk_seconds(released)  # read, digest, write
    in_registry = released if params.registry.url is None else 0
    return (
        fetch_need(source),
        calibrate_need(source, params),
        *(quantize_need(source, params, name) for name in params.variants),
        *(
            evaluate_need(source, params, name, suite_tokens=suite_tokens)
            for name in (BASE, *params.variants)
        ),
        StageNeed("select"),
        benchmark_need(source, params),
        StageNeed("package", disk_kept=released, seconds=handling),
        StageNeed("publish", disk_kept=in_registry, seconds=handling),
        StageNeed("report"),
    )


def disk_needed(needs: tuple[StageNeed, ...]) -> int:
    """Return the largest size of `artifacts/`, in bytes, at any time of a run."""
    kept = peak = 0
    for need in needs:
        peak = max(peak, kept + need.disk_kept + need.disk_temporary)
        kept += need.disk_kept
    return peak


def refusal(needs: tuple[StageNeed, ...], capacity: Capacity) -> str | None:
    """Say in one line with the numbers why a run cannot succeed; None when the machine fits it."""
    if reason := memory_refusal(needs, capacity.memory):
        return reason
    largest = max(needs, key=lambda need: need.gpu_memory)
    if capacity.gpu_memory is not None and largest.gpu_memory > capacity.gpu_memory:
        return _too_much(largest.stage, largest.gpu_memory, "GPU memory", capacity.gpu_memory)
    needed = disk_needed(needs) - capacity.written
    if needed > capacity.disk:
        return (
            f"{_bytes(needed)} more of disk needed under artifacts, {_bytes(capacity.disk)} free; "
            "free some space, or make fewer variants"
        )
    return None


def memory_refusal(needs: tuple[StageNeed, ...], available: int) -> str | None:
    """Say why `available` bytes of memory are too few for one of the stages; None when they fit."""
    largest = max(needs, key=lambda need: need.memory)
    if largest.memory <= available:
        return None
    return _too_much(largest.stage, largest.memory, "memory", available)


def _too_much(stage: str, needed: int, kind: str, available: int) -> str:
    return (
        f"{stage} needs {_bytes(needed)} of {kind}, {_bytes(available)} are available; use a "
        "machine with more, or a smaller model"
    )


def _bytes(count: int) -> str:
    return bytes_text(count).replace(NBSP, " ")


def table(needs: tuple[StageNeed, ...], speed: Speed) -> list[str]:
    """Format the needs as a table: a heading, a line for each stage and one for the whole run."""
    rows = [("stage", "memory", "disk kept", "while it runs", "time, about")]
    for need in needs:
        sizes = (_memory(need), _bytes(need.disk_kept), _bytes(need.disk_temporary))
        rows.append((need.stage, *sizes, time_text(need.duration(speed))))
    total = sum(need.duration(speed) for need in needs)
    most = max(need.memory for need in needs)
    kept = sum(need.disk_kept for need in needs)
    rows.append(
        ("whole run", _bytes(most), _bytes(kept), _bytes(disk_needed(needs)), time_text(total))
    )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]


def _memory(need: StageNeed) -> str:
    """Format the memory of a stage, and what it takes where so much is left."""
    if need.most_memory <= need.memory:
        return _bytes(need.memory)
    return f"{_bytes(need.memory)} to {_bytes(need.most_memory)}"


def time_text(seconds: float) -> str:
    """Format a time: `75` is `75 s`, `600` is `10 min`, `9000` is `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
