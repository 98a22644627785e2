"""Programs beside quantline end when quantline does, however it ends, and their memory is known."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.adapters.process import Daemon, ending
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
    assert daemon.resident_bytes() == 0


def test_an_ending_is_said_in_words() -> None:
    assert ending(3) == "ended with exit code 3"
    assert ending(-signal.SIGSEGV) == "was ended by SIGSEGV"
    assert ending(-signal.SIGKILL).endswith("SIGKILL, which Linux does when memory runs out")
