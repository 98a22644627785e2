"""Bound the time and memory of library code that an untrusted file steers.

A number or a loop in a file of a few bytes can ask for hours or for all memory of a machine.
"""

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from pipeline.core.system_errors import exhausted_memory


class LimitReachedError(Exception):
    """A block of code took too long or too much memory; the message says which."""


class _TimeIsUp(BaseException):
    pass


@contextmanager
def limited(*, seconds: float, num_bytes: int) -> Iterator[None]:
    """Raise LimitReachedError where a block takes more time, or more memory in addition.

    A library is interrupted where it runs Python code. Time is bounded in the main thread alone,
    where signals arrive, and memory where the system can bound the address space.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = psutil.Process().memory_info().vms + num_bytes
    bounds = [bound for bound in (soft, hard, allowed) if bound != resource.RLIM_INFINITY]
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGALRM, _stop) if is_main else None
    try:
        resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
        if is_main:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    except _TimeIsUp:
        raise LimitReachedError(f"it takes more than {seconds:g} s") from None
    except Exception as error:
        if exhausted_memory(error) is None:
            raise
        raise LimitReachedError(f"it takes more than {num_bytes >> 20} MiB of memory") from None
    finally:
        if is_main:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _stop(number: int, frame: object) -> None:
    raise _TimeIsUp
