"""The card's pictures: the page's charts, and images where that is allowed, as SVG files."""

from __future__ import annotations

import re

from hf_transfer.results.charts import calibration, heat_map
from hf_transfer.results.figures import figure
from hf_transfer.results.page_images import galleries
from hf_transfer.results.page_phases import curves
from hf_transfer.results.places import published_report
from hf_transfer.results.rendering import template
from hf_transfer.results.report import RunReport
from hf_transfer.results.svg import mark, shorten, svg, text
from hf_transfer.results.words import metric_phrase

MOST_CLASSES = 40  # that a confusion matrix is shown for
SHOWN = 8  # images of each kind
SIDE, GAP, ROW = 96.0, 12.0, 158.0  # of an image on the sheet, and the height of a row
WIDEST = 640.0
MARGIN = 14  # around a chart in a file of its own


def card_pictures(report: RunReport) -> dict[str, tuple[str, str]]:
    """Return the card's pictures: name of the file -> (what it shows, the SVG).

    They follow the reader's theme and need nothing from elsewhere. Images are among them only where
    the recipe says `page_images: card`.
    """
    return pictures_of(published_report(report))


def pictures_of(report: RunReport) -> dict[str, tuple[str, str]]:
    """Return the pictures of a report that others may read as it is."""
    _, values = report.measured
    found: dict[str, tuple[str, str]] = {}
    matrix, labels = values.get("confusion"), report.labels
    if matrix and len(labels) == len(matrix) <= MOST_CLASSES:
        found["confusion.svg"] = ("Confusion matrix", heat_map(matrix, labels))
    rows = values.get("calibration") or ()
    if bins := [(row["confidence"], row["accuracy"], row["n"]) for row in rows]:
        found["calibration.svg"] = ("How sure it is, and how often right", calibration(bins))
    for number, chart in enumerate(curves(report)):
        name = ("loss", metric_phrase(report.task.headline))[min(number, 1)]
        found[f"curve-{number + 1}.svg"] = (f"Training: {name}", str(chart))
    for number, one in enumerate(report.figures, 1):
        if drawn := figure(one, title=True):
            found[f"figure-{number}.svg"] = (one["title"], drawn)
    if sheet := _sheet(report):
        found["examples.svg"] = ("Images, and what the model says of them", sheet)
    return {name: (what, standalone(drawn)) for name, (what, drawn) in found.items()}


def standalone(drawn: str) -> str:
    """Return an SVG of the page as a file of its own: with its colours, light and dark."""
    css = template("page.css")
    colours = re.findall(r":root \{.*?\n\}", css, flags=re.DOTALL)[0]
    dark = re.findall(r"@media \(prefers-color-scheme: dark\) \{.*?\n\}", css, flags=re.DOTALL)[0]
    rules = "\n".join(line for line in css.split("\n") if line.startswith("svg "))
    style = (
        f"{colours}\n{dark}\n{rules}\n.ground {{ fill: var(--card); }}\n"
        "svg { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif; }"
    )
    size = re.search(r'viewBox="0 0 (\d+) (\d+)"', drawn)
    assert size, "every chart is made by `svg`"
    width, height = (int(side) for side in size.groups())
    # On a ground of its own: a page may be light where the reader's system is dark.
    x, y, wide, high = -MARGIN, -MARGIN, width + 2 * MARGIN, height + 2 * MARGIN
    ground = mark("rect", style="ground", x=x, y=y, width=wide, height=high, rx=8)
    head, rest = drawn.split(">", 1)
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    head = head.replace(size.group(), f'viewBox="{x} {y} {wide} {high}"')
    return f'{head} width="{wide}" height="{high}"><style>{style}</style>{ground}{rest}\n'


def _sheet(report: RunReport) -> str:
    """Return a sheet of the images that may be published; "" for none."""
    parts: list[str] = []
    y = 0.0
    across = int((WIDEST + GAP) // (SIDE + GAP))
    for one in galleries(report):
        parts.append(text(one["title"], 0, y + 14, "chart-title"))
        images = one["images"][:SHOWN]
        for number, image in enumerate(images):
            x, top = (number % across) * (SIDE + GAP), y + 24 + (number // across) * ROW
            drawn = mark("image", href=image["source"], x=x, y=top, width=SIDE, height=SIDE)
            parts.append(drawn)
            said = f"{image['answer']} {image['sure']}".strip()
            style = "hit-word" if image["right"] else "miss-word"
            parts.append(text(shorten(said, 16), x, top + SIDE + 14, style))
            if not image["right"]:
                parts.append(text(shorten(image["truth"], 18), x, top + SIDE + 29, "legend"))
        y += 24 + -(-len(images) // across) * ROW
    return svg(WIDEST, y, parts, "images and answers", natural=WIDEST) if parts else ""
