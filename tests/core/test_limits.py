"""Bounds of time and memory for code that an untrusted file steers."""

import resource
import signal
from itertools import count
from threading import Thread

import pytest

from pipeline.core.limits import LimitReachedError, limited


def test_a_loop_without_end_is_stopped_whatever_it_catches() -> None:
    def convert_for_ever() -> None:
        for number in count():
            try:
                int("x" * (number % 3))
            except Exception:
                continue

    with (
        pytest.raises(LimitReachedError, match=r"it takes more than 0\.1 s"),
        limited(seconds=0.1, num_bytes=1 << 30),
    ):
        convert_for_ever()


def test_a_large_allocation_is_stopped() -> None:
    with (
        pytest.raises(LimitReachedError, match="it takes more than 64 MiB of memory"),
        limited(seconds=60, num_bytes=1 << 26),
    ):
        bytearray(1 << 27)


def test_other_errors_pass_and_everything_is_as_before() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyError), limited(seconds=60, num_bytes=1 << 30):
        raise KeyError
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_memory_is_bounded_in_another_thread_too() -> None:
    messages = []

    def allocate() -> None:
        try:
            with limited(seconds=60, num_bytes=1 << 26):
                bytearray(1 << 28)
        except LimitReachedError as error:
            messages.append(str(error))

    thread = Thread(target=allocate)
    thread.start()
    thread.join()
    assert messages == ["it takes more than 64 MiB of memory"]
