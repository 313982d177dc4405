"""Tables and paragraphs for a terminal, folded to its width."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from hf_transfer.base.console import WIDE

GAP = "  "  # between columns


def table(rows: Sequence[Sequence[str]], width: int = WIDE) -> list[str]:
    """Return rows as aligned lines; a heading that starts with > is aligned to the right.

    What is wider than `width` comes in several tables below each other, each with the first column.
    """
    right = [heading.startswith(">") for heading in rows[0]]
    cells = [[cell.removeprefix(">") for cell in rows[0]], *rows[1:]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(right))]
    lines: list[str] = []
    for columns in _parts(widths, width):
        lines += [""] if lines else []
        for row in cells:
            shown = [f"{row[i]:{'>' if right[i] else '<'}{widths[i]}}" for i in columns]
            lines.append(GAP.join(shown).rstrip())
    return lines


def _parts(widths: Sequence[int], width: int) -> list[list[int]]:
    """Return the columns of each table."""
    parts = [[0]]
    for i in range(1, len(widths)):
        wide = sum(widths[column] + len(GAP) for column in parts[-1]) + widths[i]
        if wide > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(i)
    return parts


def wrapped(text: str, width: int = WIDE, indent: int = 0) -> list[str]:
    """Return a paragraph as lines of at most `width`; all but the first are indented."""
    wide = max(width, indent + 20)
    return textwrap.wrap(
        text, wide, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False
    )
