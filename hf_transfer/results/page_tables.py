"""Tables of the page: rows and plain values to HTML; what comes from outside is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

MOST_ROWS = 200
FEW_ROWS = 6  # what a list shows before one opens it
MISSING = '<span class="missing">not measured</span>'


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], box: str = "") -> str:
    """Return a table that scrolls on its own; columns are (title, style), cells are markup.

    A style is a class of page.css: num, keep (one line), wide. `box` adds one around the table:
    tall limits its height, snug its width.
    """
    head = ""
    if any(title for title, _ in columns):
        cells = "".join(f'<th class="{style}">{title}</th>' for title, style in columns)
        head = f"<tr>{cells}</tr>"
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{style}">{cell}</td>'
            for cell, (_, style) in zip(row, columns, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll {box}"><table>{head}{body}</table></div>'


def meter(share: float) -> str:
    """Return a bar that is filled to a share in 0..1."""
    return f'<span class="meter"><i style="width:{100 * share:.1f}%"></i></span>'


def label(words: str) -> str:
    """Return escaped words as a small second line of a cell; nothing for no words."""
    return f'<span class="label">{escape(words)}</span>' if words else ""


def any_value(value: Any) -> str:
    """Return any plain value as HTML: a mapping or rows as a table, a list as a list."""
    if isinstance(value, Mapping):
        rows = [[label(_words(key)), any_value(entry)] for key, entry in value.items()]
        return table([("", "keep"), ("", "wide")], rows)
    if isinstance(value, list):
        return _any_list(value)
    if value is None:
        return '<span class="missing">not stated</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(f"{value:,}" if isinstance(value, int) else str(value))


def _any_list(values: Sequence[Any]) -> str:
    if not values:
        return "none"
    shown, more = values[:MOST_ROWS], len(values) - MOST_ROWS
    rest = f'<p class="note">and {more:,} more, in report.json</p>' if more > 0 else ""
    if all(isinstance(value, Mapping) for value in shown):
        keys = list(dict.fromkeys(key for value in shown for key in value))
        rows = [[any_value(value.get(key)) for key in keys] for value in shown]
        return table([(escape(_words(key)), "") for key in keys], rows, "tall") + rest
    items = [f"<li>{any_value(value)}</li>" for value in shown]
    first, others = "".join(items[:FEW_ROWS]), "".join(items[FEW_ROWS:])
    if others:
        count = f"{len(values) - FEW_ROWS:,} more"
        others = f"<details><summary>{count}</summary><ul>{others}</ul>{rest}</details>"
    return f"<ul>{first}</ul>{others}"


def _words(key: str) -> str:
    return key.replace("_", " ")
