"""The plan of a run: what its stages need together, and whether a machine has it.

Time is the work of each stage divided by a speed that was measured on the machine; it is an
estimate, right within about a factor of TIME_FACTOR.
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
    evaluate_need,
    moving_seconds,
    variant_bytes,
)

TIME_FACTOR = 3


@dataclass(frozen=True)
class Capacity:
    """Of this machine, in bytes; `written` is what earlier runs left under artifacts/.

    `gpu_memory` is None without a GPU.
    """

    memory: int
    gpu_memory: int | None
    disk: int
    written: int


def predict(source: Source, params: Params, *, suite_tokens: int) -> tuple[StageNeed, ...]:
    """The needs of every stage in the order of a run; every variant is taken to be approved.

    `suite_tokens` is how many tokens the tasks of the suite ask to be scored.
    """
    released = sum(variant_bytes(source.shape, it) for it in params.variants.values())
    handling = LIGHT_SECONDS + 3 * moving_seconds(released)  # read, digest, write
    in_registry = released if params.registry.url is None else 0
    return (
        StageNeed("fetch", disk_kept=source.file_bytes, seconds=moving_seconds(source.file_bytes)),
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
    """The most that lies under artifacts/ at any time of a run."""
    kept = peak = 0
    for need in needs:
        peak = max(peak, kept + need.disk_kept + need.disk_temporary)
        kept += need.disk_kept
    return peak


def refusal(needs: tuple[StageNeed, ...], capacity: Capacity) -> str | None:
    """Why a run cannot succeed, in one line with the numbers, or None when it fits."""
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
    """Why so much memory is too little for one of the stages, or None."""
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
    """The needs as lines of text, one for each stage under a heading, and their sum."""
    rows = [("stage", "memory", "disk kept", "while it runs", "time, about")]
    for it in needs:
        sizes = (_bytes(it.memory), _bytes(it.disk_kept), _bytes(it.disk_temporary))
        rows.append((it.stage, *sizes, time_text(it.duration(speed))))
    total = sum(it.duration(speed) for it in needs)
    most = max(it.memory for it in needs)
    kept = sum(it.disk_kept for it in needs)
    rows.append(
        ("whole run", _bytes(most), _bytes(kept), _bytes(disk_needed(needs)), time_text(total))
    )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]


def time_text(seconds: float) -> str:
    """`75` is `75 s`, `600` is `10 min`, `9000` is `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
