"""A file that one writer at a time has: other threads and processes wait for it.

The lock ends with the process, however it ends, so a killed writer blocks nobody. It binds only
those who ask for it: quantline's own writers, not other tools.
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
    """Open `path` to read and append, made if it is missing, and hold its lock for the block.

    It stands at its end. The holder may rename or remove it; whoever waited then gets the next
    file of that name. Raises FailureError where the file system knows no locks.
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
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
