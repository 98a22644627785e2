"""Turn one row of calibration data into the text that a model reads.

A row has `text`, or a conversation under `messages` or `conversations`. Each turn of a conversation
has `role` and `content` (the form of chat services) or `from` and `value` (that of ShareGPT). The
tokenizer's chat template turns a conversation into the text that the model was trained on; Jinja's
sandbox limits what a template can reach, not how long it runs. Which rows are read, and how many
may be unusable, is decided in `pipeline.calibration.sample`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.chat_rendering import render_chat
from pipeline.core.documents import ROW_KEYS, MalformedRow
from pipeline.core.errors import InputError, short_repr
from pipeline.core.texts import encodable
from pipeline.records.statistics import SkipReason

ROLE_OF_SPEAKER = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
"""Roles of the speakers in turns with `from` and `value`; others are roles already."""


@dataclass(frozen=True)
class Document:
    """Hold the text that the model reads, and its content without special tokens.

    `has_marks` says that a chat template made `text`, so that a tokenizer must add no special
    tokens around it.
    """

    text: str
    content: str
    has_marks: bool


class UnusableRowError(InputError):
    """Say that one row cannot be read as a document, where it stands and for which reason."""

    def __init__(self, reason: SkipReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def document_of(row: object, where: str, tokenizer: Any) -> Document:
    """Read a row; messages come before conversations before text.

    Raises UnusableRowError, beginning with `where`, for a row that has none of them in the right
    form or that the chat template refuses, and InputError for a conversation without a template.
    """
    if isinstance(row, MalformedRow):
        raise UnusableRowError(SkipReason.MALFORMED, f"{where}: {row.reason}")
    values = row if isinstance(row, dict) else {}
    key = next((name for name in ROW_KEYS if values.get(name) is not None), None)
    if key is None:
        found = f"the keys {short_repr(list(row))}" if isinstance(row, dict) else short_repr(row)
        raise UnusableRowError(
            SkipReason.NO_DOCUMENT,
            f"{where}: found {found}; expected {', '.join(ROW_KEYS[:-1])} or text",
        )
    if key == "text":
        text = _plain(values[key], f"{where}: text")
        return Document(text, _without_special_tokens(text, tokenizer), has_marks=False)
    messages = _messages(values[key], where, key)
    content = "\n".join(message["content"] for message in messages)
    return Document(_rendered(messages, where, tokenizer), content, has_marks=True)


def _messages(turns: object, where: str, key: str) -> list[dict[str, str]]:
    """Read the turns of a row as messages with `role` and `content`."""
    if not isinstance(turns, list) or not turns:
        raise UnusableRowError(
            SkipReason.NO_TURNS, f"{where}: {key} = {short_repr(turns)}: expected a list of turns"
        )
    return [
        _message(turn, f"{where}: {key}, turn {number}")
        for number, turn in enumerate(turns, start=1)
    ]


def _message(turn: object, where: str) -> dict[str, str]:
    values = turn if isinstance(turn, Mapping) else {}
    role, content = ("role", "content") if values.get("role") is not None else ("from", "value")
    speaker = values.get(role)
    if not isinstance(speaker, str):
        raise UnusableRowError(
            SkipReason.NO_ROLE,
            f'{where}: found {short_repr(turn)}; expected an object with "role" or "from"',
        )
    return {
        "role": ROLE_OF_SPEAKER.get(speaker, speaker) if role == "from" else speaker,
        "content": _plain(values.get(content), f'{where}: "{content}"'),
    }


def _plain(value: object, where: str) -> str:
    """Read a string that can be written as UTF-8, or a list of parts of text as one string."""
    if isinstance(value, list) and value and all(map(_is_text_part, value)):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise UnusableRowError(
            SkipReason.NO_TEXT, f"{where}: found {short_repr(value)}; expected text"
        )
    try:
        return encodable(value, where)
    except InputError as error:
        raise UnusableRowError(SkipReason.NO_TEXT, str(error)) from error


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and type(part.get("text")) is str


def _rendered(messages: list[dict[str, str]], where: str, tokenizer: Any) -> str:
    """Render messages by the tokenizer's chat template."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            f"{where}: has messages, and the model has no chat template; use data with a plain "
            '"text", or a model with a template'
        )
    try:
        text = render_chat(tokenizer, messages)
    except Exception as error:  # a template is a program and can fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnusableRowError(
            SkipReason.TEMPLATE, f"{where}: the model's chat template fails on it: {reason[:200]}"
        ) from error
    if not isinstance(text, str):
        raise UnusableRowError(
            SkipReason.TEMPLATE,
            f"{where}: the model's chat template makes {short_repr(text)}, expected text",
        )
    return text


def _without_special_tokens(text: str, tokenizer: Any) -> str:
    """Replace each special token by a space, so that words around it are found in comparisons."""
    for token in sorted(tokenizer.all_special_tokens, key=len, reverse=True):
        text = text.replace(token, " ")
    return text
