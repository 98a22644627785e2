"""Run a command and measure its time and memory, with all processes that it starts."""

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_S = 1.0
# Reading the memory of servers takes the kernel a while: at most one part in so many of the time.
SAMPLING_SHARE = 50


@dataclass(frozen=True)
class StageCost:
    """The cost of a command.

    `peak_gib` is the largest memory of all its processes at one time, where memory that several of
    them share counts once. It is sampled every second, or less often where that would slow the
    command down. `stolen_s` is how long a processor of a virtual machine stood still on average,
    because its host ran something else; it is part of `wall_s`.
    """

    wall_s: float
    stolen_s: float
    cpu_s: float
    peak_gib: float


def run_measured(
    command: Sequence[str | Path], *, cwd: Path, environment: Mapping[str, str]
) -> StageCost:
    """Run a command to its end. Raises CalledProcessError when it fails."""
    started, stolen, cpu = time.monotonic(), stolen_s(), children_cpu_s()
    peak = 0
    with subprocess.Popen(command, cwd=cwd, env=os.environ | environment) as process:
        while process.poll() is None:
            began = time.monotonic()
            peak = max(peak, tree_bytes(process.pid))
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(SAMPLE_S, SAMPLING_SHARE * (time.monotonic() - began)))
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return StageCost(
        wall_s=time.monotonic() - started,
        stolen_s=stolen_s() - stolen,
        cpu_s=children_cpu_s() - cpu,
        peak_gib=peak / 2**30,
    )


def tree_bytes(pid: int) -> int:
    """Sum the proportional set sizes of a process and its descendants, in bytes."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += member.memory_full_info().pss
    return total


def stolen_s() -> float:
    """Return how long the processors of this machine have stood still, on average, since its start.

    It is 0 where the system does not know.
    """
    stolen: float = getattr(psutil.cpu_times(), "steal", 0.0)
    return stolen / (psutil.cpu_count() or 1)


def children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
