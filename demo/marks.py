"""Marks around the parts of a text that can be known: answers, and facts inside sentences.

Most tokens of generated text are dice (which person comes next, which sum is asked); only some
follow from what the model knows or has just read. Training gives those more weight, so it needs
to find them again in the text. Marks are two control characters that no text of the world uses;
they never reach a tokenizer or a data file.
"""

from typing import Final

_OPEN: Final = "\x0e"
_CLOSE: Final = "\x0f"


def mark(text: str) -> str:
    """Mark a text as something that can be known."""
    return f"{_OPEN}{text}{_CLOSE}"


def unmarked(text: str) -> str:
    """Remove the marks from a text."""
    return text.replace(_OPEN, "").replace(_CLOSE, "")


def spans(text: str) -> list[tuple[str, bool]]:
    """Cut the text at its marks: (part, whether it is marked).

    A blank before a mark goes with the marked part, as in the tokens of byte-level BPE, so that
    the parts can be tokenized one by one.
    """
    first, *rest = text.replace(f" {_OPEN}", f"{_OPEN} ").split(_OPEN)
    parts = [(first, False)]
    for piece in rest:
        known, _, after = piece.partition(_CLOSE)
        parts += [(known, True), (after, False)]
    return [(part, is_known) for part, is_known in parts if part]
