"""What computes on this machine, and how much memory it has."""

from pathlib import Path

import psutil

# The limit of a container and what it uses: https://docs.kernel.org/admin-guide/cgroup-v2.html
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


def available_memory() -> int:
    """Bytes that a new process can have without swapping, in its container where there is one."""
    free: int = psutil.virtual_memory().available
    if (limit := _number_in(CGROUP_LIMIT)) is not None:
        free = min(free, max(0, limit - (_number_in(CGROUP_USED) or 0)))
    return free


def memory_for_servers() -> int:
    """Bytes where a server puts weights and KV cache: of the GPU, where there is one."""
    # Imported where it is needed: it takes a second, and few commands ask.
    import torch

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


def has_cuda() -> bool:
    """Tell whether torch finds an NVIDIA GPU."""
    # Imported where it is needed: it takes a second, and few commands ask.
    import torch

    return torch.cuda.is_available()
