"""Run one push or pull in a process of its own, and measure its time and memory.

`python -m benchmarks.registry_runs push ROOT URL` publishes the packages of a workspace, `pull ROOT
REF` pulls a release into `ROOT/pulled`. The last line of its output is a `Transfer` as JSON.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from pipeline.core.workspace import Workspace
from pipeline.stages import publish
from tests.registry_server import release_params

KIB = 1024


@dataclass(frozen=True)
class Transfer:
    """The time of a push or pull, and the peak memory of its process."""

    wall_s: float
    peak_rss_mib: float


def main(direction: str, root: str, place: str) -> None:
    workspace = Workspace(Path(root))
    started = time.monotonic()
    if direction == "push":
        publish.run(workspace, release_params(url=place))
    else:
        pull = import_module("pipeline.verbs.pull")
        pull.run(workspace, ref=place, to="dir", into=str(workspace.root / "pulled"))
    wall_s = time.monotonic() - started
    status = Path("/proc/self/status").read_text()
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    print(json.dumps(asdict(Transfer(wall_s, peak_kib / KIB))))


if __name__ == "__main__":
    main(*sys.argv[1:])
