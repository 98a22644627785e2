"""What this machine has to spend: memory and disk that are free, and how fast it multiplies."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from pipeline.core.allocator import give_back_gpu
from pipeline.core.files import existing_parent
from pipeline.core.workspace import Layout
from pipeline.planning.plan import Capacity
from pipeline.planning.stage_needs import Speed

# The limit of a container and what it uses: https://docs.kernel.org/admin-guide/cgroup-v2.html
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USED = Path("/sys/fs/cgroup/memory.current")

MATRIX_SIZE = 1024
READ_FLOATS = 1 << 25
MEASURED_SECONDS = 0.3


def capacity(layout: Layout) -> Capacity:
    """What is free now."""
    written = (path.lstat() for path in layout.artifacts_dir.rglob("*") if path.is_file())
    return Capacity(
        memory=available_memory(),
        gpu_memory=torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None,
        disk=shutil.disk_usage(existing_parent(layout.artifacts_dir)).free,
        written=sum(it.st_size for it in written),
    )


def available_memory() -> int:
    """Bytes that a new process can have without swapping, in its container where there is one."""
    free: int = psutil.virtual_memory().available
    if (limit := _number_in(CGROUP_LIMIT)) is not None:
        free = min(free, max(0, limit - (_number_in(CGROUP_USED) or 0)))
    return free


def memory_for_servers() -> int:
    """Bytes where a server puts weights and KV cache: of the GPU, where there is one."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else available_memory()


def total_memory() -> int:
    """All memory and swap that this machine, or this container, has."""
    total: int = psutil.virtual_memory().total + psutil.swap_memory().total
    limit = _number_in(CGROUP_LIMIT)
    return total if limit is None else min(total, limit)


def _number_in(path: Path) -> int | None:
    """The number in a file of the kernel; None when there is no such file or no limit."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def measured_speed() -> Speed:
    """Products of float32 matrices and reads of memory, on the device that stages use."""
    try:
        return _speed_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    finally:
        give_back_gpu()  # what is free may be asked next


def _speed_of(device: torch.device) -> Speed:
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device)
    floats = torch.ones(READ_FLOATS, device=device)
    return Speed(
        operations=2 * MATRIX_SIZE**3 / _seconds(lambda: float((matrix @ matrix)[0, 0])),
        memory_bytes=floats.nbytes / _seconds(lambda: float(floats.sum())),
    )


def _seconds(work: Callable[[], float]) -> float:
    """The shortest of several times; the first, which includes setting up, is left out."""
    work()
    fastest = float("inf")
    end = time.perf_counter() + MEASURED_SECONDS
    while (start := time.perf_counter()) < end:
        work()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
