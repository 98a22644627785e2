"""Progress says how much is done and how long it may take, and never more than one line at once."""

import io

import pytest

from pipeline.core import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress sees; a test moves it on."""
    now = [0.0]
    monkeypatch.setattr("pipeline.core.progress.time.monotonic", lambda: now[0])
    return now


def test_items_pass_through_and_the_end_is_reported() -> None:
    stream = io.StringIO()
    assert list(progress.track([1, 2, 3], "work", total=3, stream=stream)) == [1, 2, 3]
    assert stream.getvalue() == "work: 3 of 3, 0 s\n"


def test_an_estimate_comes_from_what_is_done(clock: list[float]) -> None:
    stream = io.StringIO()
    for _ in progress.track(range(4), "work", total=4, stream=stream):
        clock[0] += 12
    assert stream.getvalue().splitlines() == [
        "work: 1 of 4, about 36 s left",
        "work: 2 of 4, about 24 s left",
        "work: 3 of 4, about 12 s left",
        "work: 4 of 4, 48 s",
    ]


def test_bytes_are_reported_with_an_estimate(clock: list[float]) -> None:
    stream = io.StringIO()
    with progress.ByteProgress("copy", total_bytes=40 << 20, stream=stream) as moved:
        for _ in range(2):
            moved.advance(5 << 20)
            clock[0] += 6
        moved.advance(10 << 20)
    assert stream.getvalue() == "copy: 20 of 40 MiB, about 12 s left\n"


def test_bytes_that_move_again_are_taken_back(clock: list[float]) -> None:
    stream = io.StringIO()
    with progress.ByteProgress("copy", total_bytes=4 << 20, stream=stream) as moved:
        moved.advance(3 << 20)
        moved.advance(-(2 << 20))
        clock[0] += 10
        moved.advance(1 << 20)
    assert stream.getvalue() == "copy: 2 of 4 MiB, about 10 s left\n"


def test_short_work_says_nothing_about_bytes() -> None:
    stream = io.StringIO()
    with progress.ByteProgress("copy", total_bytes=0, stream=stream) as moved:
        moved.advance(0)
    assert stream.getvalue() == ""
