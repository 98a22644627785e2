"""Facts about the machine that every measured figure depends on."""

import os
from pathlib import Path

import torch

from pipeline.records.benchmarks import Machine

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


def this_machine() -> Machine:
    """The machine this process runs on; only the cores it may use are counted."""
    facts = _first_processor()
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


def _first_processor() -> dict[str, str]:
    block = CPUINFO.read_text(encoding="utf-8").split("\n\n")[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
