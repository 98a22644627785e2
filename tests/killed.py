"""Runs of a stage as real processes that are killed at some moment of their work."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support import ROOT

POLL_S = 0.002
LIMIT_S = 300


@dataclass(frozen=True)
class Run:
    """How a run ended and how long it was at work in its directory."""

    finished: bool
    work_s: float


def run_stage(root: Path, *arguments: str, kill_after_s: float | None = None) -> Run:
    """Run `quantline ARGUMENTS` in `root`, one thread; kill it that long after its work begins.

    Its work begins when a new directory for unfinished output appears under `artifacts/`, or a
    file in one that was there.
    """
    before = work_state(root)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    with subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + LIMIT_S
        while process.poll() is None and work_state(root) == before:
            assert time.monotonic() < deadline, "the stage never began its work"
            time.sleep(POLL_S)
        began = time.monotonic()
        try:
            _, error = process.communicate(timeout=kill_after_s or LIMIT_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            _, error = process.communicate()
        work_s = time.monotonic() - began
    assert process.returncode in (0, -signal.SIGKILL), error.decode()
    return Run(finished=process.returncode == 0, work_s=work_s)


def started_program(process: subprocess.Popen[str], word: str) -> int:
    """The process id of what the process starts whose command has that word, once it has."""
    deadline = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children():
                if word in " ".join(child.cmdline()):
                    return child.pid
        time.sleep(POLL_S)
    raise AssertionError(f"it started no {word}")


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def work_state(root: Path) -> dict[Path, int]:
    """Every file in a directory of unfinished output, by when it was changed."""
    found = (root / "artifacts").rglob("*.partial")
    paths = {path for it in found for path in (it, *it.rglob("*"))}
    return {path: _changed_ns(path) for path in paths}


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # renamed since it was listed
        return 0
