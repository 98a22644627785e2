"""Run commands on a mutated checkpoint, in a fork of a process that has imported everything.

The limits are part of what is measured: a command that needs more memory or time has failed.
"""

import faulthandler
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli import main as quantline
from pipeline.planning import capacity

LIMIT_CPU_S, LIMIT_S = 60, 600
LIMIT_BYTES = 3 << 30
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
WRITTEN = "written outside: "
SECONDS = "CPU seconds: "
MEMORY = "peak memory in MiB: "
ENDED = "exit code: "


def run_case(root: str, commands: Sequence[str]) -> int:
    """Run commands in the workspace of `root` until one fails; return the exit code of the last.

    What Python writes outside of the workspace and the temporary directory is printed, and so are
    the exit code of each command, the peak of memory and the CPU time. The system ends the process
    after LIMIT_CPU_S. After LIMIT_S, where it waits for something, it prints its stack and ends.
    """
    workspace, temporary = Path(root, "workspace"), Path(root, "temporary")
    tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + LIMIT_BYTES, own + LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_CPU_S, LIMIT_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    capacity.MEASURED_SECONDS = 0.02  # the speed of this machine is no part of a case
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    allowed = (f"{workspace}/", f"{temporary}/", "/dev/null", "/dev/shm/")

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, str | bytes) or not int(str(flags)) & WRITING:
                return
        elif event in ("os.mkdir", "os.remove", "os.rename", "os.symlink", "os.rmdir"):
            path = arguments[event in ("os.rename", "os.symlink")]
        else:
            return
        place = (
            os.path.normpath(Path.cwd() / os.fsdecode(path))
            if isinstance(path, str | bytes)
            else str(path)
        )
        if not place.startswith(allowed):
            print(f"{WRITTEN}{event} {place!r}", file=sys.stderr, flush=True)

    sys.addaudithook(watch)
    code = 0
    for command in commands:
        code = quantline(["-C", str(workspace), command])
        print(f"{ENDED}{code}", file=sys.stderr, flush=True)
        if code:
            break
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{MEMORY}{usage.ru_maxrss >> 10}", file=sys.stderr)
    print(f"{SECONDS}{usage.ru_utime + usage.ru_stime:.3f}", file=sys.stderr, flush=True)
    return code
