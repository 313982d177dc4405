"""Figures: lines over a scale or over names, with their intervals, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hf_transfer.results.svg import mark, shorten, svg, text, text_width, ticks
from hf_transfer.results.words import JsonDict, show_number

Scale = Callable[[float], float]

WIDTH, HEIGHT = 420.0, 280.0
LEFT, RIGHT, BOTTOM = 46.0, 12.0, 46.0
MOST_LINES = 6  # that have a colour of their own
RATIO = 8  # of the largest x to the smallest, from which the scale is logarithmic


def figure(found: JsonDict, title: bool = False) -> str:
    """Return the SVG of one of a report's `figures`, with its `title`; "" where it has no point.

    Numbers of x that differ much are on a logarithmic scale; `names` stand for x = 0, 1, 2 ...
    """
    lines = [line for line in found["lines"][:MOST_LINES] if line["points"]]
    if not lines:
        return ""
    points = [point for line in lines for point in line["points"]]
    names = found.get("names") or []
    xs = sorted({point[0] for point in points})
    low, high = min(min(point[1:]) for point in points), max(max(point[1:]) for point in points)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    low, high = (max(0.0, low - room) if low >= 0 else low - room), high + room
    span = high - low
    rows = _legend_rows([line["name"] for line in lines])
    head = 18.0 if title else 0.0
    top = head + 24.0 + 18 * len(rows)
    tilt = bool(names) and max(text_width(shorten(n, 16), 11) for n in names) * len(names) > WIDTH
    bottom = BOTTOM + (44 if tilt else 0)
    place = _scale(xs, bool(names), LEFT + 14, WIDTH - RIGHT - 14)

    def y_of(y: float) -> float:
        return float(HEIGHT - bottom - (HEIGHT - top - bottom) * (y - low) / span)

    parts = [text(shorten(found["title"], 60), 0, 12, "chart-title")] if title else []
    for tick in ticks(low, high, 5):
        y = y_of(tick)
        parts.append(mark("line", style="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        parts.append(text(show_number(tick, 4), LEFT - 7, y + 3.5, "tick", "end"))
    parts += _x_axis(xs, names, place, HEIGHT - bottom, tilt)
    parts.append(text(found["x"], (LEFT + WIDTH) / 2, HEIGHT - 4, "axis", "middle"))
    parts.append(text(found["y"], 0, top - 10, "axis"))
    for number, line in enumerate(lines):
        parts += _line(line, number, place, y_of, names)
    for row, entries in enumerate(rows):
        for number, name, x in entries:
            y = head + 12.0 + 18 * row
            parts.append(mark("line", style=f"line c{number}", x1=x, x2=x + 16, y1=y - 4, y2=y - 4))
            parts.append(text(name, x + 22, y, "legend"))
    return svg(WIDTH, HEIGHT, parts, found["title"], natural=1.15 * WIDTH)


def figure_table(found: JsonDict) -> JsonDict:
    """Return a figure's numbers as a table: `head`, and a row for each x."""
    lines = found["lines"]
    names = found.get("names") or []
    xs = sorted({point[0] for line in lines for point in line["points"]})
    known = [{point[0]: point for point in line["points"]} for line in lines]
    rows = [[_x_name(x, names), *(_cell(values.get(x)) for values in known)] for x in xs]
    return {"head": [found["x"], *(line["name"] or found["y"] for line in lines)], "rows": rows}


def _x_name(x: float, names: Sequence[str]) -> str:
    return names[int(x)] if x == int(x) and 0 <= x < len(names) else show_number(x, 4)


def _cell(point: Sequence[float] | None) -> str:
    if point is None:
        return "–"
    shown = show_number(point[1], 3)
    return (
        f"{shown} ({show_number(point[2], 3)} to {show_number(point[3], 3)})"
        if len(point) == 4
        else shown
    )


def _scale(xs: Sequence[float], named: bool, left: float, right: float) -> dict[float, float]:
    """Return where each x is drawn; logarithmic where numbers differ much."""
    if len(xs) == 1:
        return {xs[0]: (left + right) / 2}
    wide = not named and xs[0] > 0 and xs[-1] / xs[0] >= RATIO
    shown = [math.log(x) for x in xs] if wide else list(xs)
    span = shown[-1] - shown[0]
    return {
        x: left + (right - left) * (s - shown[0]) / span for x, s in zip(xs, shown, strict=True)
    }


def _x_axis(
    xs: Sequence[float],
    names: Sequence[str],
    place: dict[float, float],
    floor: float,
    tilt: bool,
) -> list[str]:
    parts, free = [], -math.inf
    for x in xs:
        name = shorten(_x_name(x, names), 16)
        at = place[x]
        if tilt:
            turned = f"translate({at + 4:.1f},{floor + 14:.1f}) rotate(-35)"
            parts.append(text(name, 0, 0, "tick", "end", transform=turned))
        elif at - text_width(name, 11) / 2 > free:
            parts.append(text(name, at, floor + 16, "tick", "middle"))
            free = at + text_width(name, 11) / 2 + 4
    return parts


def _line(
    line: JsonDict, number: int, place: dict[float, float], y_of: Scale, names: Sequence[str]
) -> list[str]:
    points = sorted(line["points"])
    path = " ".join(f"{place[p[0]]:.1f},{y_of(p[1]):.1f}" for p in points)
    parts = []
    for point in points:
        if len(point) == 4:
            x, ends = place[point[0]], (y_of(point[2]), y_of(point[3]))
            parts.append(mark("line", style=f"bar c{number}", x1=x, x2=x, y1=ends[0], y2=ends[1]))
    parts.append(mark("polyline", style=f"line c{number}", points=path))
    for point in points:
        note = f"{line['name']}, {_x_name(point[0], names)}: {_cell(point)}"
        x, y = place[point[0]], y_of(point[1])
        parts.append(mark("circle", style=f"spot c{number}", title=note, cx=x, cy=y, r=3.2))
    return parts


def _legend_rows(names: Sequence[str]) -> list[list[tuple[int, str, float]]]:
    """Return the entries of the legend in rows: number, name, where it begins."""
    rows: list[list[tuple[int, str, float]]] = [[]]
    x = 0.0
    if len(names) == 1 and not names[0]:
        return []
    for number, name in enumerate(names):
        name = shorten(name, 30)
        width = 22 + text_width(name, 11) + 18
        if rows[-1] and x + width > WIDTH:
            rows.append([])
            x = 0.0
        rows[-1].append((number, name, x))
        x += width
    return rows
