"""Render conversations by a tokenizer's chat template, which sees the same date on any day.

Some templates print today's date (Llama 3.x, Granite 3, SmolLM3). What they make would be another
text every day, so that calibration could not be repeated and a variant would be asked other
questions than its base. Here they are told TEMPLATE_DATE. The template itself goes into releases as
it is, and prints the date where it is served.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Final

from jinja2 import TemplateSyntaxError

from pipeline.core.errors import InputError, printable
from pipeline.core.limits import LimitReachedError, run_limited

TEMPLATE_DATE: Final = date(2026, 1, 1)

CLOCK: Final = "strftime_now"
"""The only clock in a template's reach: https://huggingface.co/docs/transformers/chat_templating"""

MAX_SECONDS, MAX_BYTES, MAX_CHARACTERS = 10.0, 1 << 30, 1 << 18
SHORT_CHAT: Final = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
)


def require_renderable(template: str, *, file: str) -> None:
    """Raise InputError for a chat template that is no Jinja, and for one that does not end.

    It is rendered with two short messages, within limits of time and memory. A template may refuse
    these messages: some want a system prompt.
    """
    from transformers.utils.chat_template_utils import render_jinja_template  # takes seconds

    clock = {CLOCK: TEMPLATE_DATE.strftime}
    try:
        (text,), _ = run_limited(
            lambda: render_jinja_template([list(SHORT_CHAT)], chat_template=template, **clock),
            seconds=MAX_SECONDS,
            num_bytes=MAX_BYTES,
        )
    except (LimitReachedError, TemplateSyntaxError, RecursionError) as error:
        reason = printable(" ".join(str(error).split()))
        raise InputError(
            f"{file}: the chat template cannot be rendered ({type(error).__name__}: {reason}); "
            "correct it, or remove it and use the model without chats"
        ) from error
    except Exception:  # a template is a program: it raises anything about messages it refuses
        return
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"{file}: the chat template makes {len(text)} characters of two short messages, "
            f"expected at most {MAX_CHARACTERS}; correct it, or remove it"
        )


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **arguments: Any) -> object:
    """Return what the chat template makes of messages: a text, if it is in order.

    `arguments` are those of transformers' `apply_chat_template`. A template is a program of the
    checkpoint, run in Jinja's sandbox: it can raise anything.
    """
    clock = {CLOCK: TEMPLATE_DATE.strftime}
    return tokenizer.apply_chat_template(list(messages), tokenize=False, **clock, **arguments)


def template_date(tokenizer: Any) -> date | None:
    """Return the date that the template is told; None where it does not ask for one."""
    return TEMPLATE_DATE if CLOCK in str(tokenizer.chat_template) else None
