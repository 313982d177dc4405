"""The tab Train your own: images, network, plan, training, and the result to take away."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter

import gradio as gr

from hf_transfer.space.clicks import Clicks
from hf_transfer.space.draft import STARTS
from hf_transfer.space.drawn import classes_view, note
from hf_transfer.space.drawn_plan import plan_view
from hf_transfer.space.examples import TRAIN
from hf_transfer.space.limits import Limits, megabytes
from hf_transfer.space.parts import EACH, HIDDEN, IN_ORDER, QUIET, as_sent, button, heading, html
from hf_transfer.space.site import Site, told
from hf_transfer.space.tab_made import MadeTab
from hf_transfer.space.tab_result import build_result
from hf_transfer.space.tab_try import TryTab
from hf_transfer.space.uploads import Pictures

SIZES = (
    ("as the network was trained", 0),
    *((f"{px} px", px) for px in (32, 64, 96, 128, 160, 224)),
)
# The training stays in view while the page grows above it, until the visitor does anything.
SHOW_LIVE = """() => {
  const live = document.querySelector('#train-live');
  const show = () => live.scrollIntoView({block: 'center'});
  const grown = new ResizeObserver(show);
  grown.observe(document.querySelector('.gradio-container'));
  for (const one of ['wheel', 'touchmove', 'keydown', 'pointerdown'])
    addEventListener(one, () => grown.disconnect(), {once: true});
}"""
# What was added leaves the field, unless more is on its way: emptying the field would end that.
EMPTIED = """() => document.querySelector('#train-files .uploading')
  ? {__type__: 'update'} : null"""
# Going back, or loading the page again, would delete a visitor's images and models.
ASKS_FIRST = """
window.onbeforeunload = event => {
  if (document.querySelector('#train-classes li')) event.preventDefault();
};
"""
# gradio turns the camera off with each photo.
CAMERA_ON = """async () => {
  for (let tries = 0; tries < 20; tries++) {
    const off = document.querySelector('#train-camera [title="grant webcam access"] button');
    if (off) return off.click();
    await new Promise(done => setTimeout(done, 100));
  }
}"""
# A photo that is asked for before the camera shows anything would be none: it waits for that.
PHOTO_WAITS = """
document.hftPhotoWaits ??= document.addEventListener('click', event => {
  const camera = event.target.closest('#train-camera');
  const shown = camera && camera.querySelector('video');
  if (!shown || shown.videoWidth || !event.target.closest('.photo-capture')) return;
  event.stopPropagation();
  shown.onloadeddata = () => camera.querySelector('.photo-capture').click();
}, true) || true;
"""
EXAMPLE = (
    '<div class="hft"><p><b>No images at hand?</b> The example trains a small network in three '
    f"ways on {10 * TRAIN} handwritten digits, {TRAIN} of each: with what drawn letters taught it, "
    "and without.</p></div>"
)


@dataclass
class _Images:
    archive: gr.File
    label: gr.Textbox
    files: gr.File
    camera: gr.Image
    said: gr.HTML
    classes: gr.HTML
    look: gr.Button
    clear: gr.Button
    findings: gr.HTML


@dataclass
class _Plan:
    network: gr.Dropdown
    start: gr.Dropdown
    size: gr.Dropdown
    make: gr.Button
    advise: gr.Button
    advice: gr.HTML
    view: gr.HTML


def build_train(site: Site, tabs: gr.Tabs, try_tab: TryTab, made: MadeTab) -> None:
    """Put the tab on the page."""
    with gr.Row(elem_classes="hft-start"):
        html(EXAMPLE)
        example = button("Run the example", variant="primary", elem_id="train-example")
    images, plan = _images(site.limits), _plan(site)
    heading("3. Train")
    with gr.Row():
        go = button("Train", variant="primary", elem_id="train-go")
        stop = button("Stop", variant="stop", elem_id="train-stop")
        lead = button("Try the models", visible=False, elem_id="train-lead")
    live = html(note("Nothing has been trained yet."), "train-live")
    result = build_result(site)
    clicks = Clicks(site)
    _wire(clicks, images, plan)
    lists = [try_tab.models, made.model, *made.views, result.model, try_tab.no_model, lead]
    lists += [try_tab.examples, made.cell]
    outputs = [images.classes, plan.network, plan.size, plan.view, live, *lists]
    chosen = [plan.network, plan.start, plan.size]
    for one, run, given in (
        (go, clicks.train_plan, chosen),
        (example, clicks.run_example, None),
    ):
        one.click(None, None, None, js=SHOW_LIVE, **HIDDEN)
        one.click(run, given, outputs, concurrency_limit=None, **HIDDEN)
    stop.click(told(clicks.stop), None, None, **QUIET)
    asked, said = [plan.network, plan.size], [plan.advice, plan.view]
    plan.advise.click(clicks.advised, asked, said, concurrency_limit=None, **HIDDEN)
    lead.click(lambda: gr.update(selected="try"), None, tabs, **HIDDEN)


def _images(most: Limits) -> _Images:
    heading("1. Images")
    with gr.Tabs():
        with gr.Tab("A zip of folders"):
            html(
                '<p class="hft hft-soft">One folder for each class, with its images in it. Up to '
                f"{megabytes(most.upload_bytes)} and {most.images:,} images.</p>"
            )
            archive = gr.File(
                label="Zip file", file_types=[".zip"], elem_id="train-zip", height=140
            )
        with gr.Tab("Class by class"):
            label = gr.Textbox(
                label="Class", placeholder="such as daisy", max_length=60, elem_id="train-class"
            )
            with gr.Row():
                with gr.Column(min_width=280):
                    files = gr.File(
                        label="Images of this class",
                        file_count="multiple",
                        elem_id="train-files",
                        height=220,
                    )
                with gr.Column(min_width=280):
                    camera = gr.Image(
                        label="Or photograph them",
                        sources=["webcam"],
                        type="filepath",
                        height=220,
                        elem_id="train-camera",
                        buttons=[],
                    )
    said = html(name="train-said", on_load=PHOTO_WAITS + ASKS_FIRST)
    classes = html(classes_view(Pictures.none()), "train-classes", clicks=True)
    with gr.Row():
        look = button("Look for odd images", size="sm", elem_id="train-look")
        clear = button("Start over", size="sm", elem_id="train-clear")
    findings = html(name="train-findings")
    return _Images(archive, label, files, camera, said, classes, look, clear, findings)


def _plan(site: Site) -> _Plan:
    heading("2. Network and plan")
    with gr.Row():
        network = gr.Dropdown(
            choices=list(site.here),
            value=list(site.here)[min(1, len(site.here) - 1)],
            allow_custom_value=True,
            label="Network",
            info="One that is here" + (", or a name on the Hub" * (not site.offline)),
            elem_id="train-network",
            min_width=260,
        )
        start = gr.Dropdown(
            choices=[(words, name) for name, words in STARTS.items()],
            value="exact_head",
            label="Start from",
            info="Everything can be changed below",
            elem_id="train-start",
            min_width=220,
        )
        size = gr.Dropdown(
            choices=list(SIZES),
            value=128,
            label="Image size",
            info="Smaller is faster",
            elem_id="train-size",
            min_width=160,
        )
    with gr.Row():
        make = button("Make the plan", elem_id="train-make")
        advise = button("Ask for advice first", elem_id="train-advise")
    advice = html(name="train-advice")
    view = html(plan_view(None), "train-plan", clicks=True)
    return _Plan(network, start, size, make, advise, advice, view)


def _wire(clicks: Clicks, images: _Images, plan: _Plan) -> None:
    """Connect what is clicked with what happens then."""
    shown = [images.said, images.classes, images.findings, plan.view]
    as_sent(images.camera, attrgetter("path"))
    zipped = [images.archive, *shown]
    images.archive.upload(told(clicks.add_zip), images.archive, zipped, **EACH, **QUIET)
    for sent, event in ((images.files, images.files.upload), (images.camera, images.camera.input)):
        added = event(told(clicks.add_files), [images.label, sent], shown, **EACH, **QUIET)
        emptied = added.then(None, None, sent, js=EMPTIED, **HIDDEN)
        if sent is images.camera:
            emptied.then(None, None, None, js=CAMERA_ON, **HIDDEN)
    images.classes.ask(told(clicks.drop), None, shown, **EACH, **IN_ORDER, **HIDDEN)
    images.clear.click(told(clicks.start_over), None, shown, **QUIET)
    images.look.click(told(clicks.audited), None, images.findings, **QUIET)
    chosen = [plan.network, plan.start, plan.size]
    plan.make.click(told(clicks.planned), chosen, plan.view, **QUIET)
    plan.view.ask(told(clicks.change_plan), None, plan.view, **EACH, **IN_ORDER, **HIDDEN)
