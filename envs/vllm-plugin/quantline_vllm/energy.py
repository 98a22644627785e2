"""Read the counters of the energy that this machine has used, where it has any.

A counter is of a whole device and includes everything that runs on it. Intel and AMD count by CPU
package (RAPL, https://docs.kernel.org/power/powercap/powercap.html; on most systems only root can
read it), NVIDIA by GPU (NVML). Most virtual machines have neither.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
RAPL_PACKAGES = "intel-rapl:?"  # AMD's have the same name; parts of a package have two colons


@dataclass(frozen=True)
class Counter:
    """Read a count of joules. It starts again at 0 after `range_j`; None: never."""

    read_j: Callable[[], float]
    range_j: float | None

    def since(self, earlier_j: float) -> float:
        """Return the joules since the count was `earlier_j`."""
        used = self.read_j() - earlier_j
        return used + self.range_j if used < 0 and self.range_j is not None else used


def counters() -> list[Counter]:
    """List the counters that can be read on this machine."""
    return [*rapl_counters(POWERCAP), *nvml_counters()]


def rapl_counters(directory: Path) -> list[Counter]:
    """List the readable counters of CPU packages."""
    found = []
    for package in sorted(directory.glob(RAPL_PACKAGES)):
        try:
            _microjoules(package / "energy_uj")
            limit = _microjoules(package / "max_energy_range_uj")
        except (OSError, ValueError):
            continue
        found.append(Counter(lambda path=package: _microjoules(path / "energy_uj"), limit))
    return found


def _microjoules(path: Path) -> float:
    """Read a file of microjoules, in joules."""
    return int(path.read_text()) / 1e6


def nvml_counters() -> list[Counter]:
    """List the counters of NVIDIA's GPUs; none where one of them has no counter."""
    from vllm.third_party import pynvml

    try:
        pynvml.nvmlInit()
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(number)
            for number in range(pynvml.nvmlDeviceGetCount())
        ]
        for handle in handles:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return []
    return [
        Counter(
            lambda handle=handle: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, None
        )
        for handle in handles
    ]
