"""A file lock: one writer at a time, while other threads and processes wait.

The system releases the lock when the process ends, so a killed writer blocks nobody. The lock is
advisory: it holds back quantline's own writers, not other tools.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.core.errors import FailureError


@contextmanager
def locked_file(path: Path) -> Iterator[BinaryIO]:
    """Open `path` to read and append, create it if it is missing, and lock it for the block.

    Its position is the end. The holder may rename or remove it: a waiting writer then gets a new
    file of that name. Raises FailureError where the file system has no locks.
    """
    while True:
        with path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise FailureError(
                    f"{path}: cannot be locked ({error.strerror}); use a directory on another "
                    "file system"
                ) from error
            if _is_at(file, path):
                file.seek(0, os.SEEK_END)  # others may have written while this one waited
                yield file
                return


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Tell whether `path` still names the open `file`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
