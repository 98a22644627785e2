"""Stages that SIGKILL ends at a write of theirs; programs that others start, and whether they run.

`run_stage` runs in a fork of `tests.forks`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

from pipeline.cli import main

POLL_S = 0.002
LIMIT_S = 300


def run_stage(root: str, arguments: list[str], killed_before: int | None) -> int:
    """Run `quantline ARGUMENTS` in `root`. Return its exit code.

    SIGKILL ends it before its rename of the number `killed_before`, counted from 1: what the rename
    would put in place is written then, and everything before it is in place.
    """
    renames = 0

    def counted(rename: Callable[..., Any]) -> Callable[..., Any]:
        def change(*paths: Any, **options: Any) -> Any:
            nonlocal renames
            renames += 1
            if renames == killed_before:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(*paths, **options)

        return change

    os.rename, os.replace = counted(os.rename), counted(os.replace)
    os.chdir(root)
    return main(arguments)


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
