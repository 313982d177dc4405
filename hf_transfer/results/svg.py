"""SVG elements, and the text and numbers in them; what comes from outside is escaped here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape as escape_html

from hf_transfer.base.boundary import printable

Point = tuple[float, float]

# Mean width of a character as a share of the font size: SVG cannot measure its text.
CHARACTER = 0.58
MOST_POINTS = 240


def escape(text: str) -> str:
    """Return words from outside as text or an attribute's value."""
    return escape_html(printable(text))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return the round values in low..high, about that many, at steps of 1, 2 or 5 times 10**n."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[Point, ...]:
    """Return at most `most` points, each the mean of neighbours; as they are if there are few."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return tuple(points)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return tuple(
        (sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs
    )


def shorten(label: str, most: int = 22) -> str:
    """Return the label, cut in the middle to at most `most` characters."""
    if len(label) <= most:
        return label
    head = most // 2
    return f"{label[:head].rstrip()}…{label[head + 1 - most :].lstrip()}"


def text_width(label: str, font: float) -> float:
    """Return about how wide a text is, in the units of its font size."""
    return len(label) * font * CHARACTER


def mark(name: str, content: str = "", style: str = "", title: str = "", **values: object) -> str:
    """Return one SVG element around `content`, which is markup; attributes and title are escaped.

    Floats are written to a tenth; `style` is its class, `font_size` becomes `font-size`.
    """
    inside = (f"<title>{escape(title)}</title>" if title else "") + content
    pairs = [("class", style)] if style else []
    for key, value in values.items():
        shown = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
        pairs.append((key.replace("_", "-"), shown))
    listed = "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    return f"<{name}{listed}>{inside}</{name}>" if inside else f"<{name}{listed}/>"


def text(
    words: str, x: float, y: float, style: str, anchor: str = "", title: str = "", **values: object
) -> str:
    """Return an SVG text element; the words are escaped."""
    if anchor:
        values["text_anchor"] = anchor
    return mark("text", escape(words), style, title, x=float(x), y=float(y), **values)


def svg(
    width: float, height: float, parts: Sequence[str], name: str, natural: float | None = None
) -> str:
    """Return the parts as one picture that scales with the page, up to `natural` pixels wide."""
    size = f' style="max-width:{natural:.0f}px"' if natural else ""
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg {box} role="img" aria-label="{escape(name)}"{size}>{"".join(parts)}</svg>'
