"""Advice as one self-contained page: the answer, accuracy against depth, and what is behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from hf_transfer.data.findings import public_name
from hf_transfer.deciding import advise_text
from hf_transfer.deciding.depth import Depth
from hf_transfer.deciding.evidence import Probe
from hf_transfer.results.charts import Scale
from hf_transfer.results.rendering import render, template
from hf_transfer.results.svg import mark, shorten, svg, text, text_width, ticks
from hf_transfer.results.words import metric_phrase, metric_title, show_seconds

if TYPE_CHECKING:
    from hf_transfer.deciding.advise import Advice
    from hf_transfer.deciding.looks import BackboneAdvice
    from hf_transfer.recipe.specs import Recipe

LEFT, RIGHT, TOP = 44.0, 14.0, 44.0
WIDTH, HEIGHT = 500.0, 320.0
BELOW = (
    "95% interval",
    "standard error",
    "behind the best's",
)  # columns that go below the one before
TURNED = 7  # names, from which on they are turned


def advice_page(advice: Advice) -> str:
    """Return the HTML of an advice; it needs no network, script or font."""
    best, labels = advice.best, len(advice.labels)
    facts = [
        advise_text.shown(best.id),
        f"{best.image_px} px",
        f"{advice.images:,} images",
        f"{labels} {advice.task.noun if labels == 1 else advice.task.nouns}",
        f"{best.evidence.passes:.1f} passes in {show_seconds(advice.seconds)}",
    ]
    tables = [
        ("What to unfreeze", advise_text.depth_rows(advice)),
        ("What the features at each depth tell", advise_text.probe_rows(advice)),
    ]
    if len(advice.backbones) > 1:
        tables.insert(0, ("Backbones on the same images", advise_text.backbone_rows(advice)))
    return render(
        "advice.html",
        style=Markup(template("page.css")),  # noqa: S704
        answer=advise_text.answer(advice),
        facts=facts,
        sentences=advise_text.sentences(advice),
        metric=metric_title(advice.task.headline),
        chart=Markup(depth_chart(advice)),  # noqa: S704
        tables=[{"title": title, **_table(rows)} for title, rows in tables],
        findings=advice.findings,
        recipe=advise_text.recipe_text(advice, _public(advice.recipe)),
    )


def _table(rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return a table in which how sure a number is stands below it, so that a phone shows all."""
    heads = [head.removeprefix(">") for head in rows[0]]
    pairs = [
        (i, i + 1 if i + 1 < len(heads) and heads[i + 1] in BELOW else None)
        for i, head in enumerate(heads)
        if head not in BELOW
    ]

    def under(row: Sequence[str], place: int | None) -> str:
        return "" if place is None else row[place]

    return {
        "heads": [(heads[i], rows[0][i].startswith(">"), under(heads, j)) for i, j in pairs],
        "rows": [[(row[i], under(row, j)) for i, j in pairs] for row in rows[1:]],
    }


def _public(recipe: Recipe) -> Recipe:
    """Return a recipe without the folders of this machine."""
    data = replace(recipe.data, path=public_name(recipe.data.path or ""))
    return replace(recipe, backbone=advise_text.shown(recipe.backbone or ""), data=data)


def depth_chart(advice: Advice) -> str:
    """Return an SVG of the score against depth, from input to output, with 95% intervals.

    Dots are probes on the features that arrive at one group; rings are probes on all groups that
    would train from there on, which stand for unfreezing to that depth.
    """
    backbone, show = advice.best, advice.show
    probes, depths = backbone.evidence.probes, backbone.evidence.depths
    names = [one.group for one in probes]
    turned = len(names) >= TURNED
    bottom = 30 + max(text_width(shorten(name, 14), 11) for name in names) * 0.72 if turned else 46
    lows = [one.interval[0] for one in (*probes, *depths)] + [advice.baseline]
    highs = [one.interval[1] for one in (*probes, *depths)]
    low, high = min(lows) - 0.03, min(1.0, max(highs) + 0.03)
    floor = HEIGHT - bottom
    step = (WIDTH - LEFT - RIGHT) / len(names)

    def x_of(place: float) -> float:
        return LEFT + (place + 0.5) * step

    def told(one: Probe | Depth) -> str:
        return f"{show(one.value, 3)} ({' to '.join(map(show, one.interval))})"

    def y_of(y: float) -> float:
        return floor - (floor - TOP) * (y - low) / ((high - low) or 1)

    title = f"{metric_phrase(advice.task.headline)} of probes against depth"
    parts = _frozen(backbone, names, x_of, step, floor)
    for tick in ticks(low, high, 5):
        y = y_of(tick)
        parts.append(mark("line", style="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
        parts.append(text(show(tick), LEFT - 7, y + 3.5, "tick", "end"))
    y = y_of(advice.baseline)
    note = f"{advise_text.BASELINES[advice.task.name][1]} {show(advice.baseline)}"
    parts.append(mark("line", style="edge", title=note, x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
    parts.append(text(note, WIDTH - RIGHT, y - 5, "tick", "end"))
    line = " ".join(f"{x_of(i):.1f},{y_of(one.value):.1f}" for i, one in enumerate(probes))
    parts.append(mark("polyline", style="line other", points=line))
    for i, one in enumerate(probes):
        parts += _point(x_of(i), y_of, one, "other", f"features at {one.group}: {told(one)}")
        parts.append(_name(one.group, x_of(i), floor, turned))
    places = {name: i for i, name in enumerate(names)}
    for depth in depths:
        place = places.get(depth.first, 0 if depth.train == ("all",) else None)
        if place is not None and depth.stages:
            best = depth == backbone.choice.depth
            style = "valid" if best else "train"
            note = f"unfreezing {depth.words}: {told(depth)}"
            parts += _point(x_of(place) + 9, y_of, depth, style, note)
    parts += _legend()
    axis = "the group at which features arrive, from input to output"
    parts.append(text(axis, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "axis", "middle"))
    return svg(WIDTH, HEIGHT, parts, title, natural=1.3 * WIDTH)


def _point(x: float, y_of: Scale, one: Probe | Depth, style: str, note: str) -> list[str]:
    low, high = one.interval
    return [
        mark("line", style=f"span {style}", x1=x, x2=x, y1=y_of(low), y2=y_of(high)),
        mark("circle", style=f"spot {style}", title=note, cx=x, cy=y_of(one.value), r=4.0),
    ]


def _frozen(
    backbone: BackboneAdvice, names: list[str], x_of: Scale, step: float, floor: float
) -> list[str]:
    """Return the span of depths that stays frozen as a band with its name."""
    first = backbone.choice.depth.first
    if first not in names:
        return []
    end = x_of(names.index(first)) - step / 2
    width = max(0.0, end - LEFT)
    box = mark("rect", style="band0", x=LEFT, y=TOP - 18, width=width, height=floor - TOP + 18)
    label = text("frozen", LEFT + 5, TOP - 6, "band-name") if width > 44 else ""
    return [box + label]


def _name(name: str, x: float, floor: float, turned: bool) -> str:
    short = shorten(name, 14)
    if not turned:
        return text(short, x, floor + 16, "tick", "middle", name)
    place = f"translate({x + 4:.1f},{floor + 12:.1f}) rotate(-45)"
    return text(short, 0, 0, "tick", "end", name, transform=place)


def _legend() -> list[str]:
    parts, x = [], WIDTH - RIGHT
    for words, style in (
        ("advised", "valid"),
        ("unfrozen from here", "train"),
        ("one depth", "other"),
    ):
        x -= text_width(words, 11)
        parts.append(text(words, x, 12, "legend"))
        parts.append(mark("circle", style=f"spot {style}", cx=x - 9, cy=8.0, r=4.0))
        x -= 30
    return parts
