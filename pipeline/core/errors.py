"""The errors a user can meet. Each is one line: the value, what was expected, what to do.

Only `pipeline.cli_app` catches them and turns them into an exit code. Everything else that is
raised is a defect of quantline and keeps its traceback.
"""

from typing import ClassVar


class QuantlineError(Exception):
    """Base of every error that is reported as one line instead of a traceback."""

    exit_code: ClassVar[int] = 1


class FailureError(QuantlineError):
    """Something outside failed (a server, a disk, a tool); the same command may succeed later."""


class InputError(QuantlineError):
    """The parameters, a file or a model is not what was expected; the user must change it."""

    exit_code: ClassVar[int] = 2


class NothingApprovedError(QuantlineError):
    """Every variant was rejected: the run is complete, and there is nothing to release."""

    exit_code: ClassVar[int] = 3


INTERRUPTED = "interrupted; run the same command to go on"
INTERRUPTED_EXIT_CODE = 130

SHOWN_CHARACTERS = 80
LINE_CHARACTERS = 200


def short_repr(value: object) -> str:
    """A value from outside as one short line, for an error message."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def printable(text: str) -> str:
    """Text from outside, shortened, without line ends and control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)[:LINE_CHARACTERS]
