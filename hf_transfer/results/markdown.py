"""Markdown: tables, and words from outside that must not become markup."""

from __future__ import annotations

import re
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the cells are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(words: str) -> str:
    """Words from outside as Markdown text: what would be markup is escaped, line breaks go."""
    markup = r"([\\`*\[\]<|&~]|(?<!\w)_|_(?!\w))"
    return re.sub(markup, r"\\\1", " ".join(words.split()))


def code(words: object) -> str:
    """Return words as code, on one line, also inside a table."""
    inside = " ".join(str(words).replace("`", "'").split()).replace("|", "\\|")
    return f"`{inside}`"
