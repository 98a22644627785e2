"""Facts about this machine: its processor, its memory and its GPUs."""

import os
from pathlib import Path

import psutil

from pipeline.core.record import Record

CPUINFO = Path("/proc/cpuinfo")
# The features of x86 and Arm that matrix kernels are written for, by Linux's names.
KERNEL_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
# The limit of a container and what it uses: https://docs.kernel.org/admin-guide/cgroup-v2.html
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


class Machine(Record):
    """The machine that figures were measured on. `isa` are the CPU features that kernels use."""

    cpu: str
    cores: int
    memory_gib: float
    isa: tuple[str, ...]
    gpus: tuple[str, ...]

    @property
    def lacks_4_bit_kernels(self) -> bool:
        """Whether vLLM needs quantline's kernels for 4-bit weights: on x86 without AVX-512."""
        return not self.gpus and "avx2" in self.isa and "avx512f" not in self.isa


def this_machine() -> Machine:
    """Describe the machine of this process; `cores` counts those that the process may use."""
    # Imported where it is needed: it takes a second, and most callers ask for memory alone.
    import torch

    first_processor = CPUINFO.read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.partition(":") for line in first_processor.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    features = set(facts.get("flags", facts.get("Features", "")).split())
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cpu=facts.get("model name", os.uname().machine),
        cores=usable_cores(),
        memory_gib=round(memory_bytes / 2**30, 1),
        isa=tuple(feature for feature in KERNEL_FEATURES if feature in features),
        gpus=tuple(
            torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
        ),
    )


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def available_memory() -> int:
    """Return the bytes that a new process can get without swapping, within its container."""
    free: int = psutil.virtual_memory().available
    if (limit := _number_in(CGROUP_LIMIT)) is not None:
        free = min(free, max(0, limit - (_number_in(CGROUP_USED) or 0)))
    return free


def memory_for_servers() -> int:
    """Return the free bytes for weights and KV cache: of the GPU, or of the machine without one."""
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else available_memory()


def total_memory() -> int:
    """Return the bytes of memory and swap that this machine, or this container, has in all."""
    total: int = psutil.virtual_memory().total + psutil.swap_memory().total
    limit = _number_in(CGROUP_LIMIT)
    return total if limit is None else min(total, limit)


def _number_in(path: Path) -> int | None:
    """Read the number in a file of the kernel; None when there is no such file or no limit."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def has_cuda() -> bool:
    """Tell whether torch finds an NVIDIA GPU."""
    import torch

    return torch.cuda.is_available()
