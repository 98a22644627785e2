"""vLLM's programs, run by a process that has imported vLLM once.

Importing vLLM takes far longer than most of what is asked of it here. What a fork does is done by
a process of its own, as by a program that was started for it.
"""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.core.environments import ENVIRONMENT, OFFLINE, SERVE_PYTHON
from pipeline.core.process import Daemon
from tests.support import ROOT

PROGRAM = ROOT / "tests" / "plugin" / "vllm_forks.py"
READ_FILES = "tests.readers.read_files"
KERNEL_ERRORS = "tests.plugin.kernel_errors"
KNOWN_MODELS = "tests.plugin.known_models"
OWN = ("quantline_vllm.score", "quantline_vllm.bench", "quantline_vllm.server")
MODULES = (*OWN, READ_FILES, KERNEL_ERRORS, KNOWN_MODELS)

start_program = Daemon.__enter__  # as it is for a user


class Fork:
    """What a Daemon needs of a `Popen`."""

    def __init__(self, answers: socket.socket) -> None:
        self._answers = answers
        self._code: int | None = None
        self.pid = int(answers.recv(100))

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            self._answers.settimeout(timeout)
            try:
                status = self._answers.recv(100)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from None
            self._answers.close()
            self._code = os.waitstatus_to_exitcode(int(status))
        return self._code

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None


@contextmanager
def fork_server() -> Iterator[socket.socket]:
    """The socket of a running `tests/plugin/vllm_forks.py`, which ends with the block."""
    requests, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with subprocess.Popen(
        [SERVE_PYTHON, PROGRAM, str(theirs.fileno())],
        env=os.environ | OFFLINE | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        pass_fds=(theirs.fileno(),),
    ):
        theirs.close()
        with requests:
            yield requests


@contextmanager
def forked_programs(server: Callable[[], socket.socket]) -> Iterator[None]:
    """Let every Daemon of a vLLM program be a fork by the server of `fork_server`."""

    def start(daemon: Daemon) -> Daemon:
        python, *arguments = daemon._command
        if (python, *arguments[:1]) != (str(SERVE_PYTHON), "-m") or arguments[1] not in MODULES:
            return start_program(daemon)
        daemon.log_path.parent.mkdir(parents=True, exist_ok=True)
        request = {
            "arguments": arguments[1:],
            "environment": daemon._environment,
            "cwd": str(daemon._cwd or Path.cwd()),
            "pass_fds": daemon._pass_fds,
        }
        answers, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with theirs, daemon.log_path.open("wb") as log:
            files = [log.fileno(), theirs.fileno(), *daemon._pass_fds]
            socket.send_fds(server(), [json.dumps(request).encode()], files)
        daemon._process = Fork(answers)  # type: ignore[assignment]
        return daemon

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Daemon, "__enter__", start)
        yield


def run_command(server: int, arguments: list[str]) -> int:
    """The exit code of `quantline ARGUMENTS`, whose vLLM programs are forks by this open socket."""
    with socket.socket(fileno=server) as requests, forked_programs(lambda: requests):
        return main(arguments)
