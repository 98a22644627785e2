"""Bound the time and memory of library code that an untrusted file steers.

A number or a loop in a file of a few bytes can ask for hours or for all memory of a machine.
"""

import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.core.system_errors import exhausted_memory

AGAIN_S = 1.0
"""After so long the signal is sent again: code in C may put its own error in place of the first."""

Result = TypeVar("Result")


class LimitReachedError(Exception):
    """A block of code took too long or too much memory; the message says which."""


class _TimeIsUp(BaseException):
    """No Exception, so that no library catches it."""


def run_limited(function: Callable[[], Result], *, seconds: float, num_bytes: int) -> Result:
    """Call a function; raise LimitReachedError where it takes more CPU time, or memory on top.

    A library is interrupted where it runs Python code. Time is bounded in the main thread alone,
    where signals arrive, and memory where the system can bound the address space.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])  # of the address space, proc(5)
    allowed = pages * resource.getpagesize() + num_bytes
    bounds = [bound for bound in (soft, hard, allowed) if bound != resource.RLIM_INFINITY]
    is_main = threading.current_thread() is threading.main_thread()
    is_running = True

    def stop(number: int, frame: object) -> None:
        if is_running:
            raise _TimeIsUp

    handler = signal.signal(signal.SIGPROF, stop) if is_main else None
    try:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
            if is_main:
                signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN_S)
            return function()
        finally:
            is_running = False
    except _TimeIsUp:
        raise LimitReachedError(f"it takes more than {seconds:g} s of CPU time") from None
    except Exception as error:
        if exhausted_memory(error) is None:
            raise
        raise LimitReachedError(f"it takes more than {num_bytes >> 20} MiB of memory") from None
    finally:
        is_running = False
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if is_main:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, handler)
