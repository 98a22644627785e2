"""Run stages of a workspace in one process, and measure the CPU time and memory of each.

Run as `python -m benchmarks.measured ROOT TASK...`, where a task is `calibrate`, `quantize:NAME` or
`imatrix` (the diagonals that a GGUF variant reads from the statistics). The last line of its output
is a list of `Cost` as JSON. The kernel measures the process, so threads and children of libraries
count too. The imports of this program do not count, because they end before the first task.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.calibration.statistics import Statistics
from pipeline.core.workspace import Workspace
from pipeline.params.params import Params
from pipeline.params.reading import read_workspace
from pipeline.stages import calibrate, quantize

BYTES_PER_MAXRSS = 1024  # getrusage(2) on Linux


@dataclass(frozen=True)
class Cost:
    """The time and memory of one task.

    `own` is this process, `children` are those that it started and waited for. Peaks are since the
    start of the process.
    """

    task: str
    own_cpu_s: float
    children_cpu_s: float
    wall_s: float
    own_peak_gib: float
    children_peak_gib: float


def run_task(workspace: Workspace, params: Params, task: str) -> None:
    stage, _, name = task.partition(":")
    stages: dict[str, Callable[[], None]] = {
        "calibrate": lambda: calibrate.run(workspace, params),
        "quantize": lambda: quantize.run(workspace, params, name),
        "imatrix": lambda: read_importance(workspace),
    }
    stages[stage]()


def read_importance(workspace: Workspace) -> None:
    statistics = Statistics(workspace)
    for linear in statistics.linears:
        statistics.diagonal(linear)


def cpu_s(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def peak_gib(who: int) -> float:
    return resource.getrusage(who).ru_maxrss * BYTES_PER_MAXRSS / 2**30


def main(root: str, *tasks: str) -> None:
    workspace = Workspace(Path(root))
    params = read_workspace(workspace)
    costs = []
    for task in tasks:
        own, children = cpu_s(resource.RUSAGE_SELF), cpu_s(resource.RUSAGE_CHILDREN)
        started = time.monotonic()
        run_task(workspace, params, task)
        costs.append(
            Cost(
                task=task,
                own_cpu_s=cpu_s(resource.RUSAGE_SELF) - own,
                children_cpu_s=cpu_s(resource.RUSAGE_CHILDREN) - children,
                wall_s=time.monotonic() - started,
                own_peak_gib=peak_gib(resource.RUSAGE_SELF),
                children_peak_gib=peak_gib(resource.RUSAGE_CHILDREN),
            )
        )
    print(json.dumps([asdict(cost) for cost in costs]))


if __name__ == "__main__":
    main(*sys.argv[1:])
