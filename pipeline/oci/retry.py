"""Trying again after failures that may be gone in a moment, with pauses that grow."""

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from pipeline.oci.errors import TransientError

PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
MAX_PAUSE_S: Final = 60.0  # whatever the registry asks for

Result = TypeVar("Result")


class RetryPolicy:
    """Counts how often one piece of work has failed since it last made progress."""

    def __init__(self) -> None:
        self._failures = 0

    def progress(self) -> None:
        """Note that the work has come further, so that it may fail as often again."""
        self._failures = 0

    def wait(self, error: TransientError) -> None:
        """Pause before the next try. Raises `error` when there is none left."""
        if self._failures == len(PAUSES_S):
            raise error
        pause_s = PAUSES_S[self._failures] * random.uniform(0.5, 1.0)
        time.sleep(min(max(pause_s, error.retry_after_s), MAX_PAUSE_S))
        self._failures += 1


def with_retries(work: Callable[[], Result]) -> Result:
    """Return what `work` returns. Raises its last TransientError when every try failed."""
    retries = RetryPolicy()
    while True:
        try:
            return work()
        except TransientError as error:
            retries.wait(error)
