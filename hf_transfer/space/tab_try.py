"""The tab Try: images in, answers of one or several models side by side, why, and a table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from hf_transfer.space import answering
from hf_transfer.space.drawn import note, panel, picture
from hf_transfer.space.limits import Refused
from hf_transfer.space.models import Shown
from hf_transfer.space.parts import LAST, QUIET, as_sent, heard, html
from hf_transfer.space.site import Site, told
from hf_transfer.space.uploads import thumbnail
from hf_transfer.space.visitors import Visitor

SIDE_BY_SIDE = 4  # models that are chosen at first
EMPTY = '<p class="hft-soft">Add an image, and the answer appears here.</p>'
ONCE: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "answer"}


@dataclass
class TryTab:
    """The parts of the tab; others change the models, the examples and the hint without a model."""

    no_model: gr.HTML
    images: gr.Gallery
    more: gr.UploadButton
    examples: gr.HTML
    models: gr.CheckboxGroup
    answer: gr.HTML
    table: gr.DownloadButton
    why_row: gr.Row
    label: gr.Dropdown
    ask_why: gr.Button
    why: gr.HTML


def build_try(site: Site) -> TryTab:
    """Put the tab on the page."""
    titles = list(site.models)
    heard("Try")
    no_model = html(no_model_view(titles))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300, scale=2):
            left = _left(site, titles)
        with gr.Column(min_width=300, scale=3):
            right = _right()
    tab = TryTab(no_model, *left, *right)
    _wire(Answers(site), tab)
    return tab


def _left(site: Site, titles: Sequence[str]) -> tuple[Any, ...]:
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
    as_sent(images, lambda sent: [_path(one) for one in sent.root])
    # In place of the gallery's own icon, a button in a button, which screen readers cannot tell.
    more = gr.UploadButton(
        "Add images", file_count="multiple", size="sm", visible=False, elem_id="try-more"
    )
    examples = html(examples_view(site), "try-examples", clicks=True)
    models = gr.CheckboxGroup(
        choices=list(titles),
        value=list(titles[:SIDE_BY_SIDE]),
        label="Models",
        visible=len(titles) > 1,
        elem_id="try-models",
    )
    return images, more, examples, models


def _right() -> tuple[Any, ...]:
    answer = html(panel(EMPTY), "try-answer")
    table = gr.DownloadButton(
        "Download the answers (CSV)", visible=False, elem_id="try-csv", size="sm"
    )
    with gr.Row(visible=False, elem_id="try-why-row") as why_row:
        label = gr.Dropdown(
            choices=[], label="Why this label?", filterable=True, scale=2, min_width=160
        )
        ask_why = gr.Button("Show where it looks", scale=1, min_width=160)
    return answer, table, why_row, label, ask_why, html(name="try-why")


def _wire(answers: Answers, tab: TryTab) -> None:
    asked = [tab.images, tab.models]
    outputs = [tab.answer, tab.table, tab.why_row, tab.label, tab.why, tab.more]
    answered = told(answers.of)
    for event in (tab.images.change, tab.models.change):
        event(answered, asked, outputs, **LAST, **ONCE, **QUIET)
    tab.ask_why.click(told(answers.why), [*asked, tab.label], tab.why, **ONCE, **QUIET)
    clicked = tab.examples.ask(told(answers.example), None, tab.images, **LAST, **QUIET)
    added = tab.more.upload(told(answers.add), [tab.images, tab.more], tab.images, **LAST, **QUIET)
    for event in (clicked, added):
        event.then(answered, asked, outputs, **ONCE, **QUIET)  # no change of theirs


class Answers:
    """What happens when a visitor sends images or asks why."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def of(self, files: list[str] | None, titles: list[str], request: gr.Request) -> Any:
        """Answer images: of one in full, of many as a table."""
        site, visitor = self.site, self.site.visitors.of(request.session_hash)
        site.visitors.note(visitor, files or ())
        hidden, known = gr.update(visible=False), site.models_of(visitor)
        if not files or not known:
            empty = panel(no_model_view(known) if files else EMPTY)
            return empty, hidden, hidden, gr.update(choices=[], value=None), "", hidden
        chosen = _chosen(site, visitor, titles)
        more = gr.update(visible=True, value=None)
        asked = answering.asked_of(files, site)
        rows = answering.answers(asked, chosen, site)
        if len(asked) > 1:
            view = answering.many_view(asked, chosen, rows, site)
            csv = gr.update(
                visible=True, value=str(answering.write_csv(visitor, asked, chosen, rows))
            )
            return view, csv, hidden, gr.update(choices=[], value=None), "", more
        view = answering.one_view(asked[0], chosen, rows[0], site)
        first, labels = rows[0][0], []
        if not first.error:
            labels = [name for name, _ in first.values or first.labels]  # the likeliest first
            labels += [name for model in chosen for name in _labels(site, model)]
        choices = list(dict.fromkeys(labels))
        pick = gr.update(choices=choices, value=choices[0] if choices else None)
        return view, hidden, gr.update(visible=bool(choices)), pick, "", more

    def why(self, files: list[str], titles: list[str], label: str, request: gr.Request) -> str:
        """Show where the models see a label."""
        visitor = self.site.visitors.of(request.session_hash)
        (image,) = answering.asked_of((files or [])[:1], self.site)
        chosen = _chosen(self.site, visitor, titles)
        return answering.why_view(image, label, chosen, self.site)

    def add(self, files: list[str] | None, more: list[str] | None) -> list[str]:
        """Put more images beside those that are there."""
        return [*(files or []), *map(str, more or [])]

    def example(self, event: gr.EventData, request: gr.Request) -> list[str]:
        """Take the example that was clicked as the image."""
        at = str(getattr(event, "index", ""))
        files = self.site.examples_of(self.site.visitors.of(request.session_hash))
        return [str(files[int(at)])] if at.isdecimal() and int(at) < len(files) else []


def no_model_view(titles: Collection[str]) -> str:
    """Return what to do where there is no model to try."""
    if titles:
        return ""
    return note(
        "There is no model to try yet. Run the example, or train your own: it takes a minute."
    )


def examples_view(site: Site, visitor: Visitor | None = None) -> str:
    """Return the example images as buttons."""
    cells = []
    for i, file in enumerate(site.examples_of(visitor)[:12]):
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


def _path(one: Any) -> str:
    media = getattr(one, "image", None) or one.video
    return str(media.path)


def _chosen(site: Site, visitor: Visitor, titles: Sequence[str]) -> list[Shown]:
    known = site.models_of(visitor)
    found = [known[title] for title in titles or [] if title in known]
    if not found:
        if not known:
            raise Refused("There is no model yet. Run the example, or train your own.")
        found = list(known.values())[:1]
    return found


def _labels(site: Site, model: Shown) -> Sequence[str]:
    return site.networks.backbone(model).labels
