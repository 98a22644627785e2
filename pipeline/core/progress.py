"""Progress of long work on standard error: a bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TextIO, TypeVar

from tqdm import tqdm

from pipeline.core.errors import one_line

PLAIN_INTERVAL_S = 10.0

Item = TypeVar("Item")


def note(message: str, stream: TextIO | None = None) -> None:
    """Print one line that says what quantline does now, to standard error unless told otherwise."""
    print(one_line(message), file=stream or sys.stderr, flush=True)


def track(
    items: Iterable[Item], label: str, *, total: int, stream: TextIO | None = None
) -> Iterator[Item]:
    """Yield `items` and report how many of `total` are done, with an estimate of the time left."""
    stream = stream or sys.stderr
    if stream.isatty():
        yield from tqdm(items, desc=label, total=total, file=stream, leave=False)
    else:
        yield from _track_in_lines(items, label, total=total, stream=stream)


def _track_in_lines(
    items: Iterable[Item], label: str, *, total: int, stream: TextIO
) -> Iterator[Item]:
    started = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL_S or done == total:
            left_s = (now - started) / done * (total - done)
            ending = f"about {left_s:.0f} s left" if done < total else f"{now - started:.0f} s"
            print(f"{label}: {done} of {total}, {ending}", file=stream, flush=True)
            last = now


class ByteProgress:
    """The progress of a transfer of `total_bytes`, for a `with` block.

    Call `advance` with the size of each chunk, and with a negative number of bytes when they have
    to be transferred again.
    """

    def __init__(self, label: str, *, total_bytes: int, stream: TextIO | None = None) -> None:
        self._label = label
        self._total = total_bytes
        self._stream = stream or sys.stderr
        self._bar = tqdm(
            desc=label,
            total=total_bytes,
            unit="B",
            unit_scale=True,
            file=self._stream,
            leave=False,
            disable=not self._stream.isatty(),
        )
        self._done = 0
        self._started = self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        self._bar.update(num_bytes)
        now = time.monotonic()
        if self._bar.disable and now - self._last >= PLAIN_INTERVAL_S and self._done > 0:
            left_s = (now - self._started) / self._done * max(self._total - self._done, 0)
            print(
                f"{self._label}: {self._done / 2**20:.0f} of {self._total / 2**20:.0f} MiB, "
                f"about {left_s:.0f} s left",
                file=self._stream,
                flush=True,
            )
            self._last = now
