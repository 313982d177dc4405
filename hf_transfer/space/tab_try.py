"""The tab Try: images in, answers of one or several models side by side, why, and a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from hf_transfer.space import answering
from hf_transfer.space.drawn import note, panel, picture
from hf_transfer.space.limits import Refused
from hf_transfer.space.models import Shown
from hf_transfer.space.parts import QUIET, html
from hf_transfer.space.site import Site, told
from hf_transfer.space.uploads import thumbnail
from hf_transfer.space.visitors import Visitor

SIDE_BY_SIDE = 4  # models that are chosen at first
EMPTY = '<p class="hft-soft">The answer stands here.</p>'


@dataclass
class TryTab:
    """The parts of the tab that others change."""

    models: gr.CheckboxGroup
    images: gr.Gallery
    no_model: gr.HTML


def build_try(site: Site) -> TryTab:
    """Put the tab on the page."""
    titles = list(site.models)
    no_model = html(no_model_view(titles))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300, scale=2):
            images = gr.Gallery(
                label="Images",
                type="filepath",
                sources=["upload", "webcam", "clipboard"],
                interactive=True,
                height=300,
                columns=3,
                object_fit="contain",
                elem_id="try-images",
                buttons=[],
            )
            shown = html(_examples(site), "try-examples", clicks=True)
            models = gr.CheckboxGroup(
                choices=titles,
                value=titles[:SIDE_BY_SIDE],
                label="Models",
                visible=len(titles) > 1,
                elem_id="try-models",
            )
        with gr.Column(min_width=300, scale=3):
            answer = html(panel(EMPTY), "try-answer")
            table = gr.DownloadButton(
                "Download the answers (CSV)", visible=False, elem_id="try-csv", size="sm"
            )
            with gr.Row(visible=False, elem_id="try-why-row") as why_row:
                label = gr.Dropdown(
                    choices=[], label="Why this label?", filterable=True, scale=2, min_width=160
                )
                ask_why = gr.Button("Show where it looks", scale=1, min_width=160)
            why = html(name="try-why")
    # The files as they were sent: gradio would open them first, and fail without a reason.
    images.preprocess = lambda sent: [_path(one) for one in sent.root] if sent else None

    @told
    def answered(files: list[str] | None, titles: list[str], request: gr.Request) -> Any:
        visitor = site.visitors.of(request.session_hash)
        chosen = _chosen(site, visitor, titles)
        hidden = gr.update(visible=False)
        if not files:
            return panel(EMPTY), hidden, hidden, gr.update(choices=[], value=None), ""
        asked = answering.asked_of(files, site)
        rows = answering.answers(asked, chosen, site)
        if len(asked) == 1:
            view = answering.one_view(asked[0], chosen, rows[0], site)
        else:
            view = answering.many_view(asked, chosen, rows, site)
        one = len(asked) == 1 and not rows[0][0].error
        ranked = [name for name, _ in rows[0][0].labels] if one else []
        rest = [name for model in chosen for name in _labels(site, model) if name not in ranked]
        choices = list(dict.fromkeys([*ranked, *rest])) if one else []
        csv = answering.write_csv(visitor, asked, chosen, rows)
        return (
            view,
            gr.update(visible=len(asked) > 1, value=str(csv)),
            gr.update(visible=bool(choices)),
            gr.update(choices=choices, value=choices[0] if choices else None),
            "",
        )

    @told
    def reasons(files: list[str], titles: list[str], label: str, request: gr.Request) -> str:
        visitor = site.visitors.of(request.session_hash)
        (image,) = answering.asked_of((files or [])[:1], site)
        view, _ = answering.why_view(image, label, _chosen(site, visitor, titles), site)
        return view

    def example(event: gr.EventData) -> list[str]:
        at = str(getattr(event, "index", ""))
        files = site.examples
        return [str(files[int(at)])] if at.isdecimal() and int(at) < len(files) else []

    outputs = [answer, table, why_row, label, why]
    once: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "answer"}
    for event in (images.change, models.change):
        event(answered, [images, models], outputs, trigger_mode="always_last", **once, **QUIET)
    ask_why.click(reasons, [images, models, label], why, **once, **QUIET)
    clicked = shown.ask(example, None, images, **QUIET)
    clicked.then(answered, [images, models], outputs, **once, **QUIET)  # no change of theirs
    _endpoints(site, once)
    return TryTab(models, images, no_model)


def no_model_view(titles: Sequence[str]) -> str:
    """Return what to do where there is no model to try."""
    if titles:
        return ""
    return note(
        "There is no model to try yet. Run the example, or train your own: it takes a minute."
    )


def _endpoints(site: Site, once: dict[str, Any]) -> None:
    """Offer /predict and /explain to programs."""
    image = gr.File(visible=False, label="image")
    title = gr.Textbox(visible=False, label="model")
    label = gr.Textbox(visible=False, label="label")
    found = gr.JSON(visible=False, label="answers")
    heat = gr.JSON(visible=False, label="heat map")
    ask, ask_why = gr.Button(visible=False), gr.Button(visible=False)
    image.preprocess = lambda sent: sent.path if sent else None

    @told
    def predict(image: str, model: str, request: gr.Request) -> dict[str, Any]:
        """Return the ranked labels of an image by each model, or by the one that is named."""
        visitor = site.visitors.of(request.session_hash)
        chosen = _named(site, visitor, model)
        if not image:
            raise Refused("Send an image.")
        rows = answering.answers(answering.asked_of([image], site), chosen, site)
        if rows[0][0].error:
            raise Refused(rows[0][0].error)
        told_rows = [row.to_dict() for row in rows[0]]
        for row in told_rows:
            row["file"] = Path(image).name
        return dict(zip([one.title for one in chosen], told_rows, strict=True))

    @told
    def explain(image: str, label: str, model: str, request: gr.Request) -> dict[str, Any]:
        """Return where a model sees a label: a picture under its heat map as a data: address."""
        visitor = site.visitors.of(request.session_hash)
        (chosen, *_) = _named(site, visitor, model)
        (asked,) = answering.asked_of([image], site)
        overlay, name, share = answering.explained(asked, label, chosen, site)
        return {
            "model": chosen.title,
            "label": name,
            "said": share,
            "image": answering.data_address(overlay),
        }

    ask.click(predict, [image, title], found, api_name="predict", **once)
    ask_why.click(explain, [image, label, title], heat, api_name="explain", **once)


def _path(one: Any) -> str:
    media = getattr(one, "image", None) or getattr(one, "video", None)
    return str(media.path)


def _chosen(site: Site, visitor: Visitor, titles: Sequence[str]) -> list[Shown]:
    known = site.models_of(visitor)
    found = [known[title] for title in titles or [] if title in known]
    if not found:
        if not known:
            raise Refused("There is no model yet. Run the example, or train your own.")
        found = list(known.values())[:1]
    return found


def _named(site: Site, visitor: Visitor, title: str) -> list[Shown]:
    known = site.models_of(visitor)
    if not known:
        raise Refused("There is no model yet. Train one with /train.")
    if title and title not in known:
        raise Refused(f"There is no model {json.dumps(title)}; there are {', '.join(known)}.")
    return [known[title]] if title else list(known.values())


def _labels(site: Site, model: Shown) -> Sequence[str]:
    labels: Sequence[str] = site.networks.of(model).backbone.labels
    return labels


def _examples(site: Site) -> str:
    """Return the example images as buttons."""
    cells = []
    for i, file in enumerate(site.examples[:12]):
        try:
            address = thumbnail(file, site.limits)
        except (Refused, OSError):
            continue
        name = file.stem.replace("-", " ")
        cells.append(
            f'<button type="button" class="hft-example" data-act="example" data-index="{i}" '
            f'aria-label="Try the example {i + 1}">{picture(address, name)}</button>'
        )
    if not cells:
        return ""
    return f'<div class="hft"><p class="hft-soft">Or an example:</p>{"".join(cells)}</div>'
