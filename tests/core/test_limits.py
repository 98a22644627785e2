"""Bounds of time and memory for code that an untrusted file steers."""

import resource
import signal
from itertools import count
from threading import Thread

import pytest

from pipeline.core.limits import LimitReachedError, run_limited


def convert_for_ever() -> None:
    for number in count():
        try:
            int("x" * (number % 3))
        except Exception:
            continue


@pytest.mark.slow
def test_a_loop_without_end_is_stopped_whatever_it_catches() -> None:
    with pytest.raises(LimitReachedError, match=r"it takes more than 0\.1 s"):
        run_limited(convert_for_ever, seconds=0.1, num_bytes=1 << 30)


def test_time_that_is_up_in_any_line_is_noticed_or_not_but_never_escapes() -> None:
    for number in range(200):
        try:
            run_limited(lambda: sum(range(1000)), seconds=1e-6 * (number + 1), num_bytes=1 << 30)
        except LimitReachedError:
            continue


def test_a_large_allocation_is_stopped() -> None:
    with pytest.raises(LimitReachedError, match="it takes more than 64 MiB of memory"):
        run_limited(lambda: bytearray(1 << 27), seconds=60, num_bytes=1 << 26)


def test_what_a_function_returns_or_raises_passes_and_everything_is_as_before() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)
    assert run_limited(lambda: 5, seconds=60, num_bytes=1 << 30) == 5
    with pytest.raises(KeyError):
        run_limited(lambda: {}["x"], seconds=60, num_bytes=1 << 30)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_memory_is_bounded_in_another_thread_too() -> None:
    messages = []

    def allocate() -> None:
        try:
            run_limited(lambda: bytearray(1 << 28), seconds=60, num_bytes=1 << 26)
        except LimitReachedError as error:
            messages.append(str(error))

    thread = Thread(target=allocate)
    thread.start()
    thread.join()
    assert messages == ["it takes more than 64 MiB of memory"]
