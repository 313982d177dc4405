"""A page in the browser: drop an image, read the answer. The Space and `demo` are this."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.base.errors import UserError
from hf_transfer.recipe.tasks import THRESHOLD
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import WORDS
from hf_transfer.serving.hub import find_report, model_folder

if TYPE_CHECKING:
    import gradio

logger = logging.getLogger(__name__)

ANSWERS = 5
LABELS_NAMED = 12
KEPT_SECONDS = 3600  # how long an uploaded image stays on the server
STYLE = ".gradio-container {max-width: 60rem !important; margin: 0 auto !important}"


def build_demo(model: str | Path, examples: str | Path | None = None) -> gradio.Blocks:
    """Return the page for a run folder, a model folder or a Hub repository, not yet served.

    It shows the model's name, its leading metric with n, and the images in `examples` (default:
    the folder examples/ of the model or its run). Raises UserError without gradio or a model.
    """
    gr = _gradio()
    from hf_transfer.serving.pictures import images_below
    from hf_transfer.serving.predict import predict, ready

    folder = model_folder(model)
    report = find_report(folder)
    network = ready(folder)
    run = folder.parent if folder.name == "model" else folder
    places = [Path(examples)] if examples else [folder / "examples", run / "examples"]
    shown = next((list(images_below(place)) for place in places if place.is_dir()), [])

    backbone = network.backbone

    def answer(image: str | None) -> dict[str, float] | list[list[str]] | None:
        if image is None:
            return None
        (prediction,) = predict(network, image)
        if prediction.error:
            why = prediction.error.removeprefix(f"{prediction.file}: ")
            text = f"This image cannot be read: {why}. Try a JPEG, PNG or WebP file."
            raise gr.Error(text, duration=20, print_exception=False)
        if prediction.values is not None:
            return [[target, f"{value:.7g}"] for target, value in prediction.values]
        return dict(prediction.labels)

    name = _name(model, folder, report)
    with gr.Blocks(
        title=name, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as demo:
        labels = _labels(backbone.labels, backbone.task)
        gr.Markdown(f"# {_plain(name)}\n\n{labels}\n\n{_measured(report)}")
        with gr.Row():
            image = gr.Image(type="filepath", image_mode=None, label="Image", height=360)
            ranked = _answer_box(gr, backbone.task)
        # The file as it was sent: gradio itself would open it first, and fail without a reason.
        image.preprocess = lambda sent: sent.path if sent else None
        asked = image.change(answer, image, ranked, api_name="predict", show_progress="minimal")
        asked.failure(lambda: None, None, image, api_visibility="private")
        if shown:
            gr.Examples([[str(file)] for file in shown], image, cache_examples=False)
    return demo


def launch(
    model: str | Path,
    port: int | None = None,
    *,
    host: str | None = None,
    examples: str | Path | None = None,
    announce: Callable[[str], object] | None = None,
    wait: bool = True,
) -> gradio.Blocks:
    """Serve the page until Ctrl-C, or return it at once without `wait`; `.close()` ends it.

    `announce` is called with the address. Without a port it is the first free one from 7860 on;
    `host` is this machine alone, or GRADIO_SERVER_NAME. Nothing is sent elsewhere. Raises
    UserError, also for a port in use.
    """
    demo = build_demo(model, examples)
    try:
        demo.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            css=STYLE,
            footer_links=["api", "gradio"],
        )
    except OSError as error:
        if port is None:
            raise UserError(f"the demo cannot be served: {error}") from error
        raise UserError(f"port {port} is not free; choose another, or leave it out") from error
    logger.info("serving %s at %s", model, demo.local_url)
    if announce:
        announce(demo.local_url)
    if wait:
        demo.block_thread()
    return demo


def _gradio() -> Any:
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise UserError(
            "the demo needs gradio; install it with: pip install 'hf-transfer-learning[demo]'"
        ) from error
    return gradio


def _name(model: str | Path, folder: Path, report: RunReport | None) -> str:
    """Return the repository's id or, for a folder here, the run's or the folder's own name."""
    if not Path(model).expanduser().exists():
        return str(model)
    folder = folder.resolve()
    return folder.parent.name if report and folder.name == "model" else folder.name


def _answer_box(gr: Any, task: str) -> Any:
    """Return where the answer stands: ranked labels, or a table of numbers."""
    if task == "regression":
        heads = ["Target", "Value"]
        return gr.Dataframe(headers=heads, label="Answer", interactive=False)
    one = task == "classification"  # of several labels none stands for the image, and all are shown
    return gr.Label(num_top_classes=ANSWERS if one else None, label="Answer", show_heading=one)


def _labels(labels: Sequence[str], task: str) -> str:
    named = ", ".join(map(_plain, labels[:LABELS_NAMED]))
    more = f" and {len(labels) - LABELS_NAMED} more" if len(labels) > LABELS_NAMED else ""
    if task == "classification":
        return f"Tells {len(labels)} classes apart: {named}{more}."
    if task == "regression":
        return f"Reads off an image: {named}{more}."
    least = f"from a probability of {THRESHOLD:g} on, a label counts as there"
    return f"Says which of {len(labels)} labels an image shows: {named}{more}; {least}."


def _measured(report: RunReport | None) -> str:
    """Return the leading metric with its split, n and interval, and what was trained how."""
    if report is None:
        return "Accuracy: not measured, for no report came with this model."
    leads = report.task.headline
    split = "test" if report.metrics.get("test") else "validation"
    values = report.metrics["test"] if split == "test" else report.metrics
    value, bounds = values.get(leads), values.get("intervals", {}).get(leads)
    text = f"{WORDS[leads]}: not measured"
    if value is not None:
        interval = f", 95% interval {bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""
        text = f"{WORDS[leads]} {value:.3f} on n = {values['n']:,} {split} images{interval}"
    backbone = _plain(str(report.backbone.get("id", "not stated")))
    return f"{text}. Backbone {backbone}, recipe {_plain(report.name)}, seed {report.seed}."


def _plain(words: str) -> str:
    """Words from outside as Markdown text, without markup or line breaks."""
    return re.sub(r"([\\`*_\[\]<>&|~#!])", r"\\\1", " ".join(words.split()))
