"""The page: three tabs over one site."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from hf_transfer.results.svg import escape
from hf_transfer.space.drawn_made import labels_of, told_of
from hf_transfer.space.endpoint import build_endpoints
from hf_transfer.space.login import on_a_space
from hf_transfer.space.parts import html
from hf_transfer.space.site import Site
from hf_transfer.space.tab_made import build_made
from hf_transfer.space.tab_train import build_train
from hf_transfer.space.tab_try import build_try

TITLE = "hf_transfer"


def build_page(site: Site) -> gr.Blocks:
    """Return the page of a site, not yet served."""
    kept = int(site.limits.kept_seconds)
    name = next(iter(site.models), TITLE) if len(site.models) == 1 else TITLE
    login = gr.LoginButton(visible=False)  # made outside, where it adds no events of its own
    page = gr.Blocks(title=name, analytics_enabled=False, delete_cache=(600, kept))
    with page:
        html(_header(site, name), "hft-header")
        with gr.Tabs(selected="try" if site.models else "train") as tabs:
            with gr.Tab("Try", id="try"):
                try_tab = build_try(site)
            with gr.Tab("Train your own", id="train"):
                train = gr.Column()
            with gr.Tab("How it was made", id="made"):
                made = build_made(site)
        with train:  # last, since it changes the others
            build_train(site, tabs, try_tab, made)
        build_endpoints(site)
        if on_a_space():
            # gradio offers logins on a page that has one
            login.render()  # type: ignore[no-untyped-call]  # gradio does not say
        page.unload(_leave(site))
    return page


def _header(site: Site, name: str) -> str:
    if len(site.models) == 1:
        (model,) = site.models.values()
        backbone = site.networks.backbone(model)
        words = f"{labels_of(backbone.labels, backbone.task, backbone.thresholds)} {told_of(model)}"
    else:
        words = (
            "Transfer learning for image models: teach a pretrained network your own classes, see "
            "what each layer contributes, and take the model with you."
        )
    return f'<header class="hft"><h1>{escape(name)}</h1><p>{escape(words)}</p></header>'


def _leave(site: Site) -> Callable[[gr.Request], None]:
    def leave(request: gr.Request) -> None:
        site.visitors.away(request.session_hash)

    return leave
