"""The free memory and disk of this machine, and its measured speed."""

import shutil
import time
from collections.abc import Callable

import torch

from pipeline.core.allocator import release_gpu_memory
from pipeline.core.errors import InputError
from pipeline.core.files import existing_parent, require_free_space
from pipeline.core.machine import available_memory, total_memory
from pipeline.core.workspace import Workspace
from pipeline.planning.checkpoint_source import directory_source
from pipeline.planning.plan import Capacity, memory_refusal
from pipeline.planning.source import Source, Speed
from pipeline.planning.stage_needs import StageNeed
from pipeline.records.base import read_base_manifest

MATRIX_SIZE = 1024
READ_FLOATS = 1 << 25
MEASURED_SECONDS = 0.3


def capacity(workspace: Workspace) -> Capacity:
    """Return the memory and disk that are free now, and the size of what is under `artifacts/`."""
    written = (path.lstat() for path in workspace.artifacts_dir.rglob("*") if path.is_file())
    return Capacity(
        memory=available_memory(),
        gpu_memory=torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None,
        disk=shutil.disk_usage(existing_parent(workspace.artifacts_dir)).free,
        written=sum(file.st_size for file in written),
    )


def measured_speed() -> Speed:
    """Measure float32 matrix products and reads of memory on the device that stages use."""
    try:
        return _speed_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    finally:
        release_gpu_memory()  # `capacity` may measure the free memory next


def _speed_of(device: torch.device) -> Speed:
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device)
    floats = torch.ones(READ_FLOATS, device=device)
    return Speed(
        operations=2 * MATRIX_SIZE**3 / _seconds(lambda: float((matrix @ matrix)[0, 0])),
        memory_bytes=floats.nbytes / _seconds(lambda: float(floats.sum())),
    )


def _seconds(work: Callable[[], float]) -> float:
    """Return the mean time of `work` over MEASURED_SECONDS, after one run that warms it up."""
    work()
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < MEASURED_SECONDS:
        work()
        count += 1
    return elapsed / count


def require_room(workspace: Workspace, need: StageNeed) -> None:
    """Raise InputError when `need` exceeds all memory, FailureError when the disk is too full.

    Memory counts in full, free or not, because other programs may end while the stage runs.
    """
    if reason := memory_refusal((need,), total_memory()):
        raise InputError(reason)
    require_free_space(workspace.artifacts_dir, need.disk_kept + need.disk_temporary)


def fetched_source(workspace: Workspace) -> Source:
    """Read the shapes of the fetched base."""
    base = read_base_manifest(workspace)
    return directory_source(
        workspace.base_dir,
        unused=base.unused_tensors,
        copies=base.copied_tensors,
        text_part=base.text_part,
    )
