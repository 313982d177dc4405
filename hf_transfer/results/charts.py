"""Charts: numbers to inline SVG; the page's style sheet colours them, so they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hf_transfer.results.svg import Point, mark, shorten, svg, text, text_width, ticks
from hf_transfer.results.words import show_number

Scale = Callable[[float], float]
Show = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend, its colour class in page.css, its points in order of x."""

    name: str
    style: str
    points: tuple[Point, ...]
    best: tuple[Point, ...] = ()  # points that get a ring
    marked: bool = False  # whether each point gets a mark


@dataclass(frozen=True)
class Band:
    """A span of x with a name: one phase, and what it unfroze at its start."""

    name: str
    start: float
    end: float
    unfreezes: str = ""


def line_chart(title: str, lines: Sequence[Line], bands: Sequence[Band], show: Show) -> str:
    """Return an SVG of curves over epochs with the phases behind them; `show` writes a y value."""
    width, height, left, right, top, bottom = 380.0, 260.0, 40.0, 10.0, 46.0, 34.0
    values = [y for line in lines for _, y in line.points]
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (max(0.0, low - room) if low >= 0 else low - room), high + room
    end = max([band.end for band in bands] + [x for line in lines for x, _ in line.points]) or 1.0
    roof = top + (14 if any(band.unfreezes for band in bands) else 0)  # below what is written there

    def x_of(x: float) -> float:
        return left + (width - left - right) * x / end

    def y_of(y: float) -> float:
        return height - bottom - (height - roof - bottom) * (y - low) / (high - low)

    parts = _bands(bands, x_of, top, height - bottom)
    for tick in ticks(low, high, 5):
        y = y_of(tick)
        parts.append(mark("line", style="grid", x1=left, x2=width - right, y1=y, y2=y))
        parts.append(text(show(tick), left - 7, y + 3.5, "tick", "end"))
    for tick in ticks(0, end, 8):
        parts.append(text(f"{tick:g}", x_of(tick), height - bottom + 16, "tick", "middle"))
    parts.append(text("epoch", (left + width - right) / 2, height - 3, "tick", "middle"))
    for line in lines:
        parts += _curve(line, x_of, y_of, show)
    parts += _legend(lines, width - right)
    parts.append(text(title, 0, 12, "chart-title"))
    return svg(width, height, parts, title, natural=1.3 * width)


def scatter(title: str, points: Sequence[Point]) -> str:
    """Return an SVG of predicted against true values on one scale, with the line where they are
    the same."""
    side, left, top, bottom = 360.0, 58.0, 26.0, 40.0
    values = [value for point in points for value in point]
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room
    width = left + side + 12

    def x_of(x: float) -> float:
        return left + side * (x - low) / (high - low)

    def y_of(y: float) -> float:
        return top + side * (high - y) / (high - low)

    parts = [mark("rect", style="frame", x=left, y=top, width=side, height=side)]
    for tick in ticks(low, high, 5):
        x, y, shown = x_of(tick), y_of(tick), show_number(tick, 6)
        parts.append(mark("line", style="grid", x1=left, x2=left + side, y1=y, y2=y))
        parts.append(mark("line", style="grid", x1=x, x2=x, y1=top, y2=top + side))
        parts.append(text(shown, left - 7, y + 3.5, "tick", "end"))
        parts.append(text(shown, x, top + side + 16, "tick", "middle"))
    right, floor = left + side, top + side
    parts.append(mark("line", style="edge", x1=left, y1=floor, x2=right, y2=top))
    for x, y in points:
        note = f"true {show_number(x, 6)}, predicted {show_number(y, 6)}"
        parts.append(mark("circle", style="point", title=note, cx=x_of(x), cy=y_of(y), r=2.8))
    parts.append(text("true", left + side / 2, top + side + 34, "axis", "middle"))
    turned = f"translate(11,{top + side / 2:.1f}) rotate(-90)"
    parts.append(text("predicted", 0, 0, "axis", "middle", transform=turned))
    parts.append(text(shorten(title, 40), 0, 12, "chart-title"))
    return svg(width, top + side + bottom, parts, f"{title}: predicted against true", natural=width)


def heat_map(
    matrix: Sequence[Sequence[int]],
    labels: Sequence[str],
    links: Mapping[tuple[int, int], str] | None = None,
) -> str:
    """Return an SVG of a confusion matrix: rows true, columns predicted, shaded by share of a row.

    Hits and errors differ in colour. Counts are written where they fit, and so are labels: every
    second, third ... where classes are many. A cell's tooltip says all of it; `links` are the
    anchors that cells (row, column) lead to.
    """
    count = len(labels)
    size = max(5.0, min(56.0, 620.0 / count))
    font = max(8.0, min(12.0, size * 0.92))
    step = max(1, math.ceil(font * 1.1 / size))
    longest = max(text_width(shorten(label), font) for label in labels)
    turn = 0 if longest <= size - 6 else 45 if step == 1 else 90
    reach = {0: font, 45: longest * 0.72 + font, 90: longest}[turn]
    left, top = longest + 28, reach + 32
    width = left + size * count + (longest * 0.72 if turn == 45 else 8)
    height = top + size * count + 4
    parts = [
        text("predicted →", left, 12, "axis"),
        text(
            "← true", 0, 0, "axis", transform=f"translate(11,{top:.1f}) rotate(-90)", anchor="end"
        ),
    ]
    for i in range(0, count, step):
        middle = (i + 0.5) * size
        parts.append(_name(labels[i], left - 7, top + middle + font * 0.35, font, "end"))
        parts.append(_column_name(labels[i], left + middle, top - 7, font, turn))
    for i, row in enumerate(matrix):
        for j, cell in enumerate(row):
            if cell:
                what = "right" if i == j else f"predicted as {labels[j]}"
                title = f"{labels[i]} {what}: {cell} of {sum(row)}"
                place = (left + j * size, top + i * size)
                drawn = _cell(place, size, cell, cell / sum(row), i == j, title)
                anchor = (links or {}).get((i, j))
                parts.append(mark("a", drawn, href=f"#{anchor}") if anchor else drawn)
    side = size * count
    parts.append(mark("rect", style="frame", x=left, y=top, width=side, height=side))
    return svg(width, height, parts, "confusion matrix", natural=width)


def calibration(bins: Sequence[tuple[float, float, int]]) -> str:
    """Return an SVG of accuracy against confidence, both 0 to 1, of bins (confidence, accuracy, n).

    A bin's area is its share of the images; on the dashed line the two agree.
    """
    side, left, top, bottom = 260.0, 44.0, 12.0, 40.0
    right, floor, images = left + side, top + side, sum(n for _, _, n in bins)

    def x_of(x: float) -> float:
        return left + side * x

    def y_of(y: float) -> float:
        return floor - side * y

    parts = [mark("rect", style="frame", x=left, y=top, width=side, height=side)]
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        parts.append(mark("line", style="grid", x1=left, x2=right, y1=y_of(tick), y2=y_of(tick)))
        parts.append(text(f"{tick:.0%}", left - 7, y_of(tick) + 3.5, "tick", "end"))
        parts.append(text(f"{tick:.0%}", x_of(tick), floor + 16, "tick", "middle"))
    parts.append(mark("line", style="edge", x1=left, y1=floor, x2=right, y2=top))
    line = " ".join(f"{x_of(sure):.1f},{y_of(right_):.1f}" for sure, right_, _ in bins)
    parts.append(mark("polyline", style="line valid", points=line))
    for sure, share, n in bins:
        note = f"{n:,} images: {sure:.0%} sure on average, {share:.0%} right"
        radius = 2.5 + 12 * math.sqrt(n / images) if images else 2.5
        x, y = x_of(sure), y_of(share)
        parts.append(mark("circle", style="point", title=note, cx=x, cy=y, r=radius))
    parts.append(text("how sure the model is", left + side / 2, floor + 34, "axis", "middle"))
    turned = f"translate(9,{top + side / 2:.1f}) rotate(-90)"
    parts.append(text("how often it is right", 0, 0, "axis", "middle", transform=turned))
    return svg(right + 16, floor + bottom, parts, "calibration", natural=right + 16)


def interval(
    value: float,
    bounds: Sequence[float] | None,
    low: float,
    high: float,
    least: float | None = None,
) -> str:
    """Return a small SVG of a value on the scale low..high: its interval, and what it must beat."""
    width, middle = 180.0, 9.0

    def x_of(x: float) -> float:
        return 6 + (width - 12) * min(1.0, max(0.0, (x - low) / ((high - low) or 1)))

    parts = [mark("line", style="rail", x1=6.0, x2=width - 6, y1=middle, y2=middle)]
    name = f"{value:.4g}"
    if bounds:
        start, span = x_of(bounds[0]), max(2.0, x_of(bounds[1]) - x_of(bounds[0]))
        parts.append(mark("rect", style="whisker", x=start, y=4.0, width=span, height=10.0, rx=3.0))
        name += f", 95% interval {bounds[0]:.4g} to {bounds[1]:.4g}"
    if least is not None:
        title = f"{least:.3g} without a model"
        parts.append(
            mark(
                "line", style="least", title=title, x1=x_of(least), x2=x_of(least), y1=1.0, y2=17.0
            )
        )
    parts.append(mark("circle", style="dot", cx=x_of(value), cy=middle, r=3.4))
    return svg(width, 2 * middle, parts, name, natural=width)


def _bands(bands: Sequence[Band], x_of: Scale, top: float, floor: float) -> list[str]:
    parts = []
    for i, band in enumerate(bands):
        x, width = x_of(band.start), max(0.0, x_of(band.end) - x_of(band.start))
        box = mark(
            "rect", style=f"band{i % 2}", x=x, y=top - 18, width=width, height=floor - top + 18
        )
        names = (f"{i + 1} {band.name}", str(i + 1))
        fitting = next((name for name in names if text_width(name, 10) < width - 6), "")
        label = text(fitting, x + 5, top - 6, "band-name")
        note = f"phase {i + 1}: {band.name}"
        if band.unfreezes:
            note += f"; unfreezes {band.unfreezes}"
            words = next(
                (
                    w
                    for w in (f"unfreezes {band.unfreezes}", "unfreezes more")
                    if text_width(w, 10) < width - 6
                ),
                "",
            )
            label += text(words, x + 8, top + 12, "thaw")
        parts.append(mark("g", box + label, title=note))
        if i:
            parts.append(mark("line", style="edge", x1=x, x2=x, y1=top - 18, y2=floor))
        if band.unfreezes:
            corners = f"{x:.1f},{top + 4:.1f} {x + 6:.1f},{top + 8:.1f} {x:.1f},{top + 12:.1f}"
            parts.append(mark("polygon", style="unfreeze", title=note, points=corners))
    return parts


def _curve(line: Line, x_of: Scale, y_of: Scale, show: Show) -> list[str]:
    path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points)
    parts = [mark("polyline", style=f"line {line.style}", points=path)]
    for x, y in line.points if line.marked else ():
        best = (x, y) in line.best
        note = f"{line.name} {show(y)} at epoch {x:g}" + (", best of its phase" if best else "")
        style = f"{'ring' if best else 'spot'} {line.style}"
        radius = 4.4 if best else 2.6
        parts.append(mark("circle", style=style, title=note, cx=x_of(x), cy=y_of(y), r=radius))
    return parts


def _legend(lines: Sequence[Line], right: float) -> list[str]:
    parts, x = [], right
    for line in reversed(lines):
        x -= text_width(line.name, 11)
        parts.append(text(line.name, x, 12, "legend"))
        parts.append(mark("line", style=f"line {line.style}", x1=x - 22, x2=x - 6, y1=8.0, y2=8.0))
        x -= 36
    return parts


def _name(label: str, x: float, y: float, font: float, anchor: str) -> str:
    return text(shorten(label), x, y, "name", anchor, label, font_size=font)


def _column_name(label: str, x: float, y: float, font: float, turn: int) -> str:
    if turn == 0:
        return _name(label, x, y, font, "middle")
    place = f"translate({x + font * turn / 260:.1f},{y:.1f}) rotate(-{turn})"
    return text(shorten(label), 0, 0, "name", "", label, font_size=font, transform=place)


def _cell(place: Point, size: float, count: int, share: float, hit: bool, title: str) -> str:
    x, y = place
    # Errors are rare: a power below one keeps one in fifty visible.
    strength = share if hit else share**0.7
    gap = 1.0 if size > 12 else 0.0
    side = size - gap
    box = mark(
        "rect",
        style="hit" if hit else "miss",
        x=x,
        y=y,
        width=side,
        height=side,
        rx=2 * gap,
        fill_opacity=f"{max(0.06, strength):.2f}",
    )
    if text_width(str(count), 11) <= size - 6:
        dark = strength > (0.7 if hit else 0.8)  # where the other tone would be harder to read
        tone = "count strong" if dark else "count"
        box += text(str(count), x + side / 2, y + side / 2 + 4, tone, "middle")
    return mark("g", box, title=title)
