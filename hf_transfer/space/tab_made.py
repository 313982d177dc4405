"""The tab How it was made: one run at a time, with a confusion matrix that opens its images."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from hf_transfer.space.drawn import figures, note, panel
from hf_transfer.space.drawn_made import made_views
from hf_transfer.space.limits import Refused
from hf_transfer.space.models import Shown
from hf_transfer.space.parts import HIDDEN, LAST, heard, html
from hf_transfer.space.site import Site, told
from hf_transfer.space.uploads import thumbnail

MOST = 24  # images of a cell


@dataclass
class MadeTab:
    """The parts of the tab that others change."""

    model: gr.Dropdown
    views: list[gr.HTML]
    cell: gr.HTML


def build_made(site: Site) -> MadeTab:
    """Put the tab on the page."""
    titles = list(site.models)
    heard("How it was made")
    first = site.models[titles[0]] if titles else None
    model = gr.Dropdown(
        choices=titles,
        value=titles[0] if titles else None,
        label="Model",
        visible=bool(titles),
        elem_id="made-model",
    )
    parts = made_views(first)
    top = html(parts[0], "made-view")
    with gr.Row():
        with gr.Column(min_width=320):
            matrix = html(parts[1], "made-matrix", clicks=True)
        with gr.Column(min_width=280):
            cell = html(name="made-cell")
    views = [top, matrix, html(parts[2], "made-scores")]

    @told
    def show(title: str | None, request: gr.Request) -> tuple[str, ...]:
        known = site.models_of(site.visitors.of(request.session_hash))
        return *made_views(known.get(title or "")), ""

    @told
    def open_cell(title: str | None, event: gr.EventData, request: gr.Request) -> str:
        known = site.models_of(site.visitors.of(request.session_hash))
        found = known.get(title or "")
        if found is None or found.report is None:
            raise Refused("This model is no longer here. Train it again.")
        labels = found.report.labels
        at = [str(getattr(event, name, "")) for name in ("true", "said")]
        if not all(one.isdecimal() and int(one) < len(labels) for one in at):
            raise Refused("There is no such cell.")
        true, said = (labels[int(one)] for one in at)
        return cell_view(site, found, true, said)

    model.change(show, model, [*views, cell], **HIDDEN)
    matrix.ask(open_cell, model, cell, **LAST, **HIDDEN)
    return MadeTab(model, views, cell)


def cell_view(site: Site, model: Shown, true: str, said: str) -> str:
    """Return the validation images of a class that got an answer, the surest first: those on this
    machine, or those that the report carries."""
    title = f"{true}, answered {said}" if true != said else f"{true}, answered right"
    rows = [row for row in model.answers if (row.true, row.said) == (true, said)]
    cells = []
    for row in sorted(rows, key=lambda row: -row.share)[:MOST]:
        try:
            address = thumbnail(row.file, site.limits, 120)
        except (Refused, OSError):
            continue
        cells.append((address, f"{row.share:.0%} sure", row.file.name))
    cells = cells or _carried(model, true, said)
    if not cells:
        return panel(note("The images of this cell did not travel with the model."), title)
    more = note(f"{len(rows) - MOST:,} more are not shown.") if len(rows) > MOST else ""
    return panel(f"{figures(cells)}{more}", title)


def _carried(model: Shown, true: str, said: str) -> list[tuple[str, str, str]]:
    """Return the images of a cell that the report carries."""
    rows = model.report.examples.get("rows", ()) if model.report and model.may_show else ()
    found = [row for row in rows if (row["truth"], row["answer"]) == (true, said)]
    return [
        (
            f"data:image/webp;base64,{row['picture']}",
            "" if row["sure"] is None else f"{row['sure']:.0%} sure",
            row["file"],
        )
        for row in found[:MOST]
    ]
