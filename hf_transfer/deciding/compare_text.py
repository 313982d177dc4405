"""What a comparison says: a table for each number of images, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_transfer.results.words import metric_phrase

if TYPE_CHECKING:
    from hf_transfer.deciding.compare import Comparison, Row


def format_comparison(comparison: Comparison) -> str:
    """Return the printed tables and their conclusions."""
    seeds = len(comparison.seeds)
    lines = [
        f"{metric_phrase(comparison.metric)} on {comparison.test_images:,} test images by which "
        f"nothing was chosen: mean and range of {seeds} seed{'s' * (seeds > 1)}",
        *comparison.notes,
    ]
    width = max(len(row.way) for row in comparison.rows)
    for count in dict.fromkeys(row.per_class for row in comparison.rows):
        rows = [row for row in comparison.rows if row.per_class == count]
        title = "all training images" if count is None else f"{count} labelled images per class"
        lines += ["", title]
        for row in sorted(rows, key=lambda row: -row.mean):
            lines.append(
                f"  {row.way:{width}}  {_value(row)}  {_cost(row)}  {_apart(row)}".rstrip()
            )
        lines += ["", f"  {conclusion(rows)}"]
    return "\n".join([*lines, "", f"{comparison.seconds:.0f} s in all."])


def conclusion(rows: list[Row]) -> str:
    """Return a sentence that follows from the rows of one number of images."""
    best = max(rows, key=lambda row: row.mean)
    if len(rows) == 1:
        return f"Only {best.way} was measured."
    if all(row.behind is None for row in rows):
        return f"{best.way} is best on average; how much of that is chance was not tested."
    near = [row.way for row in rows if row.behind is not None and row.behind[1] <= 0]
    if not near:
        return f"{best.way} is best, and by more than chance among these test images explains."
    cheapest = min((row for row in rows if row.way in (*near, best.way)), key=lambda r: r.seconds)
    even = [row.way for row in rows if row.way in near and row.mean == best.mean]
    near = [way for way in near if way not in even]
    words = f"{best.way} is best"
    if even:
        words = f"{_and([best.way, *even])} have the same mean, and it is the best"
    if near:
        words += f"; these images cannot tell {'them' if even else 'it'} from {_and(near)}"
    words += "."
    if even or cheapest.way != best.way:
        words += f" Of these, {cheapest.way} takes the least time."
    return words


def _value(row: Row) -> str:
    return f"{row.mean:.3f} ({min(row.values):.3f}..{max(row.values):.3f})"


def _cost(row: Row) -> str:
    return f"{row.seconds:6.0f} s  {row.parameters:>12,} parameters trained"


def _apart(row: Row) -> str:
    if row.behind is None:
        return ""
    gain, low, high = row.behind
    return f"{0 - gain:+.3f} to the best ({0 - high:+.3f}..{0 - low:+.3f})"  # never -0.000


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
