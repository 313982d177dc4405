"""A page in the browser: drop an image, read the answer. The Space and `demo` are this."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.base.boundary import printable, said, untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.recipe.tasks import THRESHOLD
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import METRIC_TITLES
from hf_transfer.serving.hub import find_report, model_folder
from hf_transfer.serving.published import place_name

if TYPE_CHECKING:
    import gradio

logger = logging.getLogger(__name__)

ANSWERS = 5
LABELS_NAMED = 12
KEPT_SECONDS = 3600  # how long an uploaded image stays on the server
MOST_BYTES = 30 * 2**20  # of an uploaded file; gradio reads no more of it
MOST_PIXELS = 60_000_000  # of an uploaded image; more are not decoded
SMALLER = "Try a smaller copy of the image."
COLUMN = 300  # px; two columns stand side by side from twice this width on
STYLE = """
.gradio-container {max-width: 60rem !important; margin: 0 auto !important}
.gradio-container .fillable {padding: clamp(0.75rem, 3vw, 2rem) !important}
"""


def build_demo(model: str | Path, examples: str | Path | None = None) -> gradio.Blocks:
    """Return the page for a run folder, a model folder or a Hub repository, not yet served.

    It shows the model's name, its leading metric with n, and the images in `examples` (default:
    the folder examples/ of the model or its run). Raises UserError without gradio or a model.
    """
    gr = _gradio()
    from hf_transfer.serving.pictures import images_below
    from hf_transfer.serving.predict import predict, ready

    folder = model_folder(model)
    report = _report(folder)
    network = ready(folder)
    run = folder.parent if folder.name == "model" else folder
    places = [Path(examples)] if examples else [folder / "examples", run / "examples"]
    shown = next((list(images_below(place)) for place in places if place.is_dir()), [])

    backbone = network.backbone

    def answer(image: str | None) -> dict[str, float] | list[list[str]] | None:
        if image is None:
            return None
        if why := _refusal(image):
            raise gr.Error(why, duration=20, print_exception=False)
        (prediction,) = predict(network, image)
        if prediction.error:
            why = prediction.error.removeprefix(f"{prediction.file}: ").replace(image, "the file")
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
        gr.Markdown(f"# {_plain(name)}\n\n{labels}\n\n{_told(report)}")
        with gr.Row():
            with gr.Column(min_width=COLUMN):
                image = gr.Image(type="filepath", image_mode=None, label="Image", height=320)
            with gr.Column(min_width=COLUMN):
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
            max_file_size=MOST_BYTES,
            css=STYLE,
            footer_links=["api", "gradio"],
        )
    except OSError as error:
        if port is None:
            raise UserError(f"the demo cannot be served: {said(error)}") from error
        raise UserError(f"port {port} is not free; choose another, or leave it out") from error
    logger.info("serving %s at %s", model, demo.local_url)
    if announce:
        announce(demo.local_url)
    if wait:
        demo.block_thread()
    return demo


def _refusal(file: str) -> str | None:
    """Return in a sentence why an uploaded file is not decoded, None where nothing is against it.

    Only its size and the head that says how large the picture is are read.
    """
    from PIL import Image

    if Path(file).stat().st_size > MOST_BYTES:
        most = f"{MOST_BYTES // 2**20} MB"
        return f"This file is larger than {most}, the most that this page reads. {SMALLER}"
    try:
        with untrusted("the image"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with Image.open(file) as image:
                    pixels = image.width * image.height
            except Image.DecompressionBombError:
                pixels = MOST_PIXELS + 1
    except UserError:
        return None  # whatever is wrong with it, `predict` says
    if pixels > MOST_PIXELS:
        most = f"{MOST_PIXELS // 10**6} million pixels"
        return f"This image has more than {most}, the most that this page reads. {SMALLER}"
    return None


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
        return f"Distinguishes {len(labels)} classes: {named}{more}."
    if task == "regression":
        return f"Predicts from an image: {named}{more}."
    least = f"a label counts as present from a probability of {THRESHOLD:g}"
    return f"Predicts which of {len(labels)} labels an image shows: {named}{more}; {least}."


def _report(folder: Path) -> RunReport | None:
    """Return the model's report; one that cannot be read is warned of, and the page goes on."""
    try:
        return find_report(folder)
    except UserError as error:
        logger.warning("%s", error)
        return None


def _told(report: RunReport | None) -> str:
    """Return what the report says of the model; a report of odd values says nothing."""
    if report is None:
        return "Accuracy: not measured; no report came with this model."
    try:
        with untrusted("report.json"):
            return _measured(report)
    except UserError as error:
        logger.warning("%s", error)
        return "Accuracy: not measured; the report that came with this model cannot be read."


def _measured(report: RunReport) -> str:
    """Return the leading metric with its split, n and interval, and what was trained how."""
    leads = report.task.headline
    split = "test" if report.metrics.get("test") else "validation"
    values = report.metrics["test"] if split == "test" else report.metrics
    value, bounds = values.get(leads), values.get("intervals", {}).get(leads)
    text = f"{METRIC_TITLES[leads]}: not measured"
    if value is not None:
        interval = f", 95% interval {bounds[0]:.3f} to {bounds[1]:.3f}" if bounds else ""
        text = f"{METRIC_TITLES[leads]} {value:.3f} on n = {values['n']:,} {split} images{interval}"
    backbone = _plain(place_name(str(report.backbone.get("id", "not stated"))))
    return f"{text}. Backbone {backbone}, recipe {_plain(report.name)}, seed {report.seed:d}."


def _plain(words: str) -> str:
    """Words from outside as Markdown text, without markup or line breaks."""
    return re.sub(r"([\\`*_\[\]<>&|~#!])", r"\\\1", printable(" ".join(words.split())))
