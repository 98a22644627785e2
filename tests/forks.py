"""A program that imports modules once and then runs each function that it is asked for in a fork.

What a fork does is done by a process of its own, as by a program that was started for it, without
the seconds that every such start imports for.
"""

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.support import ROOT


@dataclass(frozen=True)
class ForkServer:
    requests: IO[str]
    answers: IO[str]

    def run(self, module: str, function: str, *arguments: Any, log_path: Path) -> int:
        """The code of a process that runs `module.function`: minus the signal that ended it.

        It is 1 after an error and what the function returns otherwise. Its output goes to the log.
        """
        request = [module, function, arguments, str(log_path)]
        self.requests.write(json.dumps(request) + "\n")
        self.requests.flush()
        return os.waitstatus_to_exitcode(int(self.answers.readline()))


@contextmanager
def fork_server(*modules: str, paths: Sequence[Path] = ()) -> Iterator[ForkServer]:
    """A running server that has imported `modules`, with `paths` in front of where it looks.

    It has one thread, since others would not live on in a fork.
    """
    python_path = os.pathsep.join(map(str, [*paths, ROOT]))
    with subprocess.Popen(
        [sys.executable, "-m", "tests.forks", *modules],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": python_path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield ForkServer(process.stdin, process.stdout)


def serve() -> None:
    """Answer every line of the standard input with the status of its fork."""
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(answer(*json.loads(line)))
        print(os.waitpid(child, 0)[1], flush=True)


def answer(module: str, function: str, arguments: Sequence[Any], log_path: str) -> int:
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        code: int | None = getattr(importlib.import_module(module), function)(*arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0


if __name__ == "__main__":
    serve()
