"""Jinja2 templates: the model card and the report.

Every value is escaped for the format of its template, because names and texts come from untrusted
files. Nothing is fetched. A missing value raises an error instead of leaving a blank.
"""

import re
from importlib.resources import files
from typing import Final

from jinja2 import Environment, FunctionLoader, StrictUndefined

MARKDOWN_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>#|~!])")


class Verbatim(str):
    """Text for a Markdown code block or span, which is not escaped."""

    __slots__ = ()


def render_html(template: str, **values: object) -> str:
    """Render an HTML template; values are escaped unless they are `markupsafe.Markup`."""
    return _environment(autoescape=True).get_template(template).render(values)


def render_markdown(template: str, **values: object) -> str:
    """Render a Markdown template; values are escaped unless they are `Verbatim`."""
    environment = _environment(autoescape=False)
    environment.finalize = _escape_markdown
    return environment.get_template(template).render(values)


def read_asset(name: str) -> str:
    """Read a template or a style sheet of this package, named by its path in it."""
    return (files("pipeline") / name).read_text(encoding="utf-8")


def _environment(*, autoescape: bool) -> Environment:
    return Environment(
        loader=FunctionLoader(read_asset),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _escape_markdown(value: object) -> object:
    """Put a value on one line and escape what Markdown would interpret, except in `Verbatim`."""
    if isinstance(value, Verbatim):
        return value
    text = " ".join(str(value).split())
    return MARKDOWN_SPECIAL.sub(r"\\\1", text)
