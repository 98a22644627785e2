"""One-line errors for whatever a library raises about a file of a checkpoint.

Libraries check untrusted files by code of each model and each tokenizer. It raises anything, and
the Rust library of tokenizers panics: it writes to standard error and raises what is no Exception.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.core.errors import InputError, QuantlineError, printable

PANIC = "PanicException"  # of pyo3, which has no name in Python to import it by


@contextmanager
def readable_library_errors(what: str, remedy: str) -> Iterator[None]:
    """Raise InputError that begins with `what` and ends with `remedy` for any error of a library.

    What the library writes to standard error meanwhile is lost.
    """
    try:
        with _without_standard_error():
            yield
    except QuantlineError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        reason = printable(" ".join(str(error).split()))
        kind = type(error).__name__
        raise InputError(f"{what} ({kind}: {reason}); {remedy}") from error


@contextmanager
def _without_standard_error() -> Iterator[None]:
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
