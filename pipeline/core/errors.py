"""The errors that a user can meet: one line with the value, what was expected and what to do.

Only `pipeline.cli_app` catches them and turns them into an exit code. Any other exception is a
defect of quantline and keeps its traceback.
"""

from typing import ClassVar


class QuantlineError(Exception):
    """Base class of the errors that are reported as one line instead of a traceback."""

    exit_code: ClassVar[int] = 1


class FailureError(QuantlineError):
    """A server, a disk or a tool failed; the same command may succeed later."""


class InputError(QuantlineError):
    """Parameters, a file or a model are not as expected; the user must change them."""

    exit_code: ClassVar[int] = 2


class NothingApprovedError(QuantlineError):
    """No variant was approved: the run is complete, and there is nothing to release."""

    exit_code: ClassVar[int] = 3


INTERRUPTED = "interrupted; run the same command to go on"
INTERRUPTED_EXIT_CODE = 130

SHOWN_CHARACTERS = 80
LINE_CHARACTERS = 200
NO_BREAK_SPACE = "\xa0"


def short_repr(value: object) -> str:
    """Return the repr of an untrusted value, cut to one short line, for an error message."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def printable(text: str) -> str:
    """Shorten an untrusted text and replace its line ends and control characters by `?`."""
    return one_line(text)[:LINE_CHARACTERS]


def one_line(text: str) -> str:
    """Replace line ends and control characters by `?`."""
    return "".join(c if c.isprintable() or c == NO_BREAK_SPACE else "?" for c in text)
