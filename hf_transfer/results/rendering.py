"""Templates to text: HTML and Markdown in which words from outside never become markup."""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from hf_transfer.base.boundary import printable
from hf_transfer.results import words

# What Markdown, and the HTML within it, would read as markup; underscores only beside a space.
_MARKUP = re.compile(r"([\\`*\[\]<>|&~#!]|(?<!\w)_|_(?!\w))")


def template(name: str) -> str:
    """Return a template's text; it travels with the package."""
    return files("hf_transfer.results").joinpath("templates", name).read_text(encoding="utf-8")


def render(name: str, **context: Any) -> str:
    """Return a template filled in: whatever is not Markup is escaped, as its suffix asks for."""
    return _environment(name.endswith(".md")).get_template(name).render(**context)


@functools.cache
def _environment(markdown: bool) -> Environment:
    environment = Environment(
        loader=FunctionLoader(template),
        autoescape=True,
        finalize=_as_markdown if markdown else _as_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": words.show_count,
        "rate": words.show_rate,
        "seconds": words.show_seconds,
        "number": words.show_number,
        "thousands": "{:,}".format,
        "code": code,
        "lines": lines,
    }
    return environment


def _as_text(value: Any) -> Any:
    return value if hasattr(value, "__html__") else printable(str(value))


def _as_markdown(value: Any) -> Any:
    """Return words from outside as Markdown text on one line; Markup is left as it is."""
    return value if hasattr(value, "__html__") else Markup(escape_markdown(str(value)))


def escape_markdown(text: str) -> str:
    """Return a text on one line in which Markdown and HTML find no markup."""
    return _MARKUP.sub(r"\\\1", printable(" ".join(text.split())))


def code(text: object) -> Markup:
    """Return words as Markdown code on one line, also within a table."""
    inside = printable(" ".join(str(text).replace("`", "'").split())).replace("|", "\\|")
    return Markup(f"`{inside}`")  # noqa: S704


def lines(text: str) -> Markup:
    """Return a text of several lines as HTML; elsewhere a line break is shown as an escape."""
    return Markup("\n").join(printable(line) for line in text.split("\n"))
