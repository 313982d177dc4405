"""What a visitor takes away: model folder, recipe and report; or a push with their own login."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from hf_transfer.space import training
from hf_transfer.space.drawn import note
from hf_transfer.space.limits import Refused
from hf_transfer.space.login import WATCH, login_view, on_a_space, push_as
from hf_transfer.space.parts import HIDDEN, QUIET, button, heading, html
from hf_transfer.space.site import Site, told


@dataclass
class Result:
    """The parts that others change."""

    model: gr.Dropdown


def build_result(site: Site) -> Result:
    """Put the part of the tab on the page."""
    heading("4. Take it away")
    html(
        '<p class="hft hft-soft">Your images and models are yours alone, and vanish '
        f"{site.limits.kept} after your last click, or soon after you close this page.</p>"
    )
    with gr.Row():
        model = gr.Dropdown(
            choices=[], label="Model", visible=False, elem_id="take-model", min_width=220
        )
    with gr.Row():
        pack = button("Prepare the downloads", elem_id="take-pack")
        folder = gr.DownloadButton("Model folder (zip)", visible=False, min_width=150)
        recipe = gr.DownloadButton("Recipe", visible=False, min_width=110)
        report = gr.DownloadButton("Report", visible=False, min_width=110)

    @told
    def packed(title: str | None, request: gr.Request) -> list[Any]:
        visitor = site.visitors.of(request.session_hash)
        found = visitor.models.get(title or "")
        if found is None:
            raise Refused("Train a model first.")
        return [
            gr.update(value=str(one), visible=True) for one in training.packed(site, visitor, found)
        ]

    files = [folder, recipe, report]
    pack.click(packed, model, files, **QUIET)
    model.change(lambda: [gr.update(visible=False)] * len(files), None, files, **HIDDEN)
    if on_a_space():
        _push(site, model)
    return Result(model)


def _push(site: Site, model: gr.Dropdown) -> None:
    """Offer to push with the visitor's own login."""
    html(
        '<p class="hft hft-soft">Or push the model to the Hub as yourself. Your login is used for '
        "this and stored nowhere.</p>"
    )
    login = html(name="take-login", on_load=WATCH)
    with gr.Row():
        name = gr.Textbox(label="Repository", placeholder="your-name/model", min_width=220)
        private = gr.Checkbox(label="Private", info="Only you see it", value=True, min_width=160)
    go = button("Push to the Hub", elem_id="take-push")
    said = html(name="take-pushed")

    @told
    def push(
        title: str | None,
        repo: str,
        private: bool,
        request: gr.Request,
        token: gr.OAuthToken | None,
    ) -> str:
        found = site.visitors.of(request.session_hash).models.get(title or "")
        address = push_as(found, repo, private, request, token.token if token else None)
        return note(f"Pushed: {address}")

    login.ask(login_view, None, login, **HIDDEN)
    go.click(push, [model, name, private], said, **QUIET)
