"""A chart of several ways, as dots or lines with their names beside them, on a logarithmic x."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_transfer.results.svg import Point, mark, shorten, svg, text, text_width, ticks

WIDTH, HEIGHT = 440.0, 300.0
LEFT, TOP, BOTTOM = 44.0, 30.0, 40.0
LINE = 13.0  # height of a name beside its dot


@dataclass(frozen=True)
class Spot:
    """One measured point: where it lies (x above 0), the range over seeds, and its tooltip."""

    x: float
    y: float
    low: float
    high: float
    note: str


@dataclass(frozen=True)
class Named:
    """The points of one way, in order of x, and whether it is the best one."""

    name: str
    spots: tuple[Spot, ...]
    best: bool = False


def ways_chart(title: str, axis: str, ways: Sequence[Named], unit: str = "") -> str:
    """Return an SVG of each way's points over a logarithmic x; several of one way are joined.

    Names stand in a column at the right, each led to from its way's last point. `unit` follows
    the numbers of the x axis.
    """
    longest = max(text_width(shorten(way.name), 11) for way in ways)
    right = WIDTH - longest - 14
    spots = [spot for way in ways for spot in way.spots]
    low_x, high_x = _padded(min(s.x for s in spots), max(s.x for s in spots))
    low, high = min(s.low for s in spots), max(s.high for s in spots)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room

    def x_of(x: float) -> float:
        return LEFT + (right - LEFT) * math.log(x / low_x) / math.log(high_x / low_x)

    def y_of(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)

    parts, rows = [], ticks(low, high, 5)
    places = max(len(f"{tick:.6g}".partition(".")[2]) for tick in rows)  # 0.50 beside 0.55
    for tick in rows:
        y = y_of(tick)
        parts.append(mark("line", style="grid", x1=LEFT, x2=right, y1=y, y2=y))
        parts.append(text(f"{tick:.{places}f}", LEFT - 7, y + 3.5, "tick", "end"))
    known = sorted({spot.x for spot in spots})
    for value in known if len(known) <= 4 and not unit else _round(low_x, high_x):
        parts.append(text(f"{value:g}{unit}", x_of(value), HEIGHT - BOTTOM + 16, "tick", "middle"))
    parts.append(text(axis, (LEFT + right) / 2, HEIGHT - 6, "axis", "middle"))
    for way in ways:
        style = "valid" if way.best else "other"
        points = [(x_of(spot.x), y_of(spot.y)) for spot in way.spots]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(mark("polyline", style=f"line {style}", points=path))
        for spot, (x, y) in zip(way.spots, points, strict=True):
            low_y, high_y = y_of(spot.low), y_of(spot.high)
            parts.append(mark("line", style=f"span {style}", x1=x, x2=x, y1=low_y, y2=high_y))
            parts.append(mark("circle", style=f"spot {style}", title=spot.note, cx=x, cy=y, r=4.0))
    last = [(x_of(way.spots[-1].x), y_of(way.spots[-1].y)) for way in ways]
    parts += _names(ways, last, right)
    parts.append(text(title, 0, 12, "chart-title"))
    return svg(WIDTH, HEIGHT, parts, title, natural=1.3 * WIDTH)


def _names(ways: Sequence[Named], last: Sequence[Point], right: float) -> list[str]:
    parts = []
    for way, (x, y), name_y in zip(ways, last, _apart([y for _, y in last]), strict=True):
        parts.append(mark("line", style="lead", x1=x + 6, y1=y, x2=right + 8, y2=name_y))
        style = "name strong" if way.best else "name"
        place = (right + 12, name_y + 3.5)
        parts.append(text(shorten(way.name), *place, style, "", way.name, font_size=11))
    return parts


def _padded(low: float, high: float) -> tuple[float, float]:
    """Return the ends of a logarithmic axis with some room; never equal."""
    low = max(low, 1e-3)
    share = max(1.15, (high / low) ** 0.05)
    return low / share, max(high, low) * share


def _round(low: float, high: float) -> list[float]:
    """Return round values in low..high, at most about eight: 1, 2, 5 times a power of ten, or
    where fewer than two of these lie there, equally far apart."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    values = [m * 10.0**n for n in range(first, last + 1) for m in (1, 2, 5)]
    inside = [value for value in values if low <= value <= high]
    if len(inside) < 2:
        return ticks(low, high, 3)
    return inside if len(inside) <= 8 else [v for v in inside if f"{v:e}"[0] == "1"]


def _apart(places: Sequence[float]) -> list[float]:
    """Return the places moved as little as needed to be LINE apart, in the same order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for _ in range(50):
        done = True
        for above, below in zip(order, order[1:], strict=False):
            short = LINE - (moved[below] - moved[above])
            if short > 0.01:
                moved[above], moved[below] = moved[above] - short / 2, moved[below] + short / 2
                done = False
        if done:
            break
    return moved
