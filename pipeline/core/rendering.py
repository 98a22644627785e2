"""Rendering Jinja2 templates: the model card and the report.

Every value is escaped for the format it is put into, whatever it is: names and texts come from
files that somebody else wrote. Nothing is fetched, and a missing value is a defect, not a blank.
"""

import re
from importlib.resources import files
from typing import Final

from jinja2 import Environment, FunctionLoader, StrictUndefined

MARKDOWN_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>#|~!])")


class Verbatim(str):
    """Text that goes into a Markdown code block or span as it is."""

    __slots__ = ()


def render_html(template: str, **values: object) -> str:
    """Render an HTML template; values are escaped unless they are `markupsafe.Markup`."""
    return _environment(autoescape=True).get_template(template).render(values)


def render_markdown(template: str, **values: object) -> str:
    """Render a Markdown template; values are escaped unless they are `Verbatim`."""
    environment = _environment(autoescape=False)
    environment.finalize = _for_markdown
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


def _for_markdown(value: object) -> object:
    if isinstance(value, Verbatim):
        return value
    text = " ".join(str(value).split())
    return MARKDOWN_SPECIAL.sub(r"\\\1", text)
