"""Child processes: the only module that starts one.

`run_program` waits until a program ends. `Daemon` keeps a server alive for a `with` block. Both
give the program a session of its own, so that its children end with it, and both end it when
quantline is killed. `ask_program` is for small helpers that answer at once.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from pipeline.core.errors import FailureError, InputError

# Replaces itself by the given program, which the kernel ends when the process with the given id
# does: https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html. It is a program of its
# own because a function between fork and exec (`preexec_fn`) can lock up when threads are running.
END_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)
if hasattr(libc, "prctl"):
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored_by_python, signal.SIG_DFL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""
STOP_GRACE_S = 15.0
POLL_S = 0.2
LAST_LINES = 5


def run_program(
    command: Sequence[str | Path],
    *,
    log_path: Path,
    environment: Mapping[str, str],
    cwd: Path | None = None,
) -> None:
    """Run a program until it ends; its output goes to `log_path`.

    `environment` is added to this process's own. Raises FailureError, with the program's last
    lines, for an exit code other than 0; InputError when the program does not exist.
    """
    with Daemon(command, log_path=log_path, environment=environment, cwd=cwd) as program:
        code = program.wait()
    if code != 0:
        raise FailureError(f"{Path(command[0]).name}: {exit_text(code)}: {last_lines(log_path)}")


@dataclass(frozen=True)
class ProgramAnswer:
    """How a program ended, and what it wrote to its standard output."""

    exit_code: int
    output: bytes


def ask_program(
    command: Sequence[str | Path], question: bytes, *, timeout_s: float
) -> ProgramAnswer:
    """Send `question` to a program's standard input and return what it answers.

    Its standard error goes to the user. Raises InputError when the program does not exist,
    FailureError when it takes longer than `timeout_s`.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            [str(part) for part in command],
            input=question,
            stdout=subprocess.PIPE,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such program; install it, or name another") from error
    except subprocess.TimeoutExpired as error:
        raise FailureError(f"{name}: no answer within {timeout_s:g} s") from error
    return ProgramAnswer(done.returncode, done.stdout)


class Daemon:
    """A program that runs for a `with` block. Its output goes to `log_path`.

    `environment` is added to this process's own. The program inherits the open files `pass_fds`
    under the same numbers. Entering raises InputError when the program does not exist.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log_path: Path,
        environment: Mapping[str, str],
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._command = [str(part) for part in command]
        self._environment = {**os.environ, **environment}
        self._cwd = cwd
        self._pass_fds = pass_fds
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.which(self._command[0], path=self._environment.get("PATH")) is None:
            raise InputError(f"{self._command[0]}: no such program; run `make setup`")
        starter = [sys.executable, "-I", "-S", "-c", END_WITH_PARENT, str(os.getpid())]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*starter, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self._cwd,
                pass_fds=self._pass_fds,
                start_new_session=True,
            )
        return self

    def __exit__(self, *error: object) -> None:
        self._signal_group(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._running.wait(STOP_GRACE_S)
        self._signal_group(signal.SIGKILL)
        self._running.wait()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "used outside its `with` block"
        return self._process

    @property
    def pid(self) -> int:
        return self._running.pid

    def exit_code(self) -> int | None:
        """Return the exit code, or None while the program runs."""
        return self._running.poll()

    def wait(self) -> int:
        return self._running.wait()

    def resident_bytes(self) -> int:
        """Return the bytes of memory of the program and its children; shared pages count once."""
        total = 0
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):  # it has ended meanwhile, or is another user's
                if os.getsid(process.pid) == self.pid:
                    total += process.memory_full_info().pss
        return total

    def wait_until(self, ready: Callable[[], bool], *, timeout_s: float, what: str) -> None:
        """Poll `ready` until it is true; `what` names the program in messages.

        Raises FailureError, with the program's last lines, when it ends first or is not ready
        within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            code = self.exit_code()
            if code is not None:
                raise FailureError(f"{what}: {exit_text(code)}: {last_lines(self.log_path)}")
            if time.monotonic() > deadline:
                raise FailureError(
                    f"{what}: not ready after {timeout_s:.0f} s: {last_lines(self.log_path)}"
                )
            time.sleep(POLL_S)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._running.pid, number)


def exit_text(code: int) -> str:
    """Describe how a program ended, for a message; `code` is negative for a signal."""
    if code >= 0:
        return f"ended with exit code {code}"
    hint = ", which Linux does when memory runs out" if code == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{hint}"


def last_lines(log_path: Path, count: int = LAST_LINES) -> str:
    """Return the last non-empty lines of a log, joined into one."""
    lines = (line.strip() for line in log_path.read_text(errors="replace").splitlines())
    return " | ".join([line for line in lines if line][-count:])


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that no program listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def require_free_port(port: int) -> None:
    """Raise InputError when another program listens on `port` of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"serve.port = {port}: taken by another program; free it, or set serve.port to "
                "null for a free one"
            ) from error
