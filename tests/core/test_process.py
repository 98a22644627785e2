"""Programs beside quantline end when quantline does, however it ends, and their memory is known."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import InputError
from pipeline.core.process import Daemon, exit_text, run_program
from tests.killed import is_running
from tests.support import ROOT

MIB = 1 << 20


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_program_ends_with_the_one_that_started_it(
    tmp_path: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.killed_server", str(tmp_path / "log")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert is_running(pid)
        starter.send_signal(number)
        starter.wait(30)
    deadline = time.monotonic() + 30
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def test_the_memory_of_a_program_counts_what_it_started(tmp_path: Path) -> None:
    child = "data = bytearray(100 << 20); print('held', flush=True); import time; time.sleep(60)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    log_path = tmp_path / "log"
    with Daemon([sys.executable, "-c", program], log_path=log_path, environment={}) as daemon:
        daemon.wait_until(lambda: "held" in log_path.read_text(), timeout_s=30, what="it")
        assert 100 * MIB < daemon.resident_bytes() < 160 * MIB
    assert daemon.exit_code() is not None
    deadline = time.monotonic() + 30  # the system takes back the memory of what was killed
    while daemon.resident_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert daemon.resident_bytes() == 0


def test_a_program_meets_the_signals_and_files_that_it_expects(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    log_path = tmp_path / "log"
    with Daemon(
        ["sh", "-c", f"echo x > /dev/fd/{writing}; grep SigIgn /proc/self/status"],
        log_path=log_path,
        environment={},
        pass_fds=(writing,),
    ) as daemon:
        assert daemon.wait() == 0
    os.close(writing)
    assert os.read(reading, 8) == b"x\n"
    os.close(reading)
    ignored = int(log_path.read_text().split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))


@pytest.mark.parametrize("name", ["no-such-program", "/", "/etc/passwd"])
def test_what_is_no_program_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: no such program; run `make setup`$"):
        run_program([name], log_path=tmp_path / "log", environment={})


def test_a_program_starts_while_threads_run_without_code_between_fork_and_exec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a thread of this process could hold a lock for ever."""
    given: dict[str, object] = {}
    start = subprocess.Popen.__init__

    def noting(self: Any, *arguments: Any, **options: Any) -> None:
        given.update(options)
        start(self, *arguments, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", noting)
    run_program([sys.executable, "-c", ""], log_path=tmp_path / "log", environment={})
    assert given["start_new_session"]
    assert "preexec_fn" not in given


def test_an_ending_is_said_in_words() -> None:
    assert exit_text(3) == "ended with exit code 3"
    assert exit_text(-signal.SIGSEGV) == "was ended by SIGSEGV"
    assert exit_text(-signal.SIGKILL).endswith("SIGKILL, which Linux does when memory runs out")
