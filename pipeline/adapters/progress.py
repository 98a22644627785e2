"""Progress of long work on standard error: a bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

PLAIN_INTERVAL_S = 10.0

Item = TypeVar("Item")


def note(message: str, stream: TextIO | None = None) -> None:
    """One line that says what is happening now."""
    print(message, file=stream or sys.stderr, flush=True)


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
