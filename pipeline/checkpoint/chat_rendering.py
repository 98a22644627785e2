"""Render conversations by a tokenizer's chat template, which sees the same date on any day.

Some templates print today's date (Llama 3.x, Granite 3, SmolLM3). What they make would be another
text every day, so that calibration could not be repeated and a variant would be asked other
questions than its base. Here they are told TEMPLATE_DATE. The template itself goes into releases as
it is, and prints the date where it is served.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Final

TEMPLATE_DATE: Final = date(2026, 1, 1)

CLOCK: Final = "strftime_now"
"""The only clock in a template's reach: https://huggingface.co/docs/transformers/chat_templating"""


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
