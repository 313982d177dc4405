"""A published folder opened in a fresh process, in every way that its card shows, and compared.

The answers are those to files of images of odd sizes and modes, and must be `predict`'s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.data.decoding import load_image

if TYPE_CHECKING:
    from hf_transfer.backbones.blueprint import Backbone

SAME = 1e-4  # how far answers may lie apart
SECONDS = 900
DEEP = "deep"  # in the names of files of 16 bits, which other loaders clip
Answer = Callable[[Path], list[float]]


def check_loaders(folder: Path) -> list[str]:
    """Return the names of the loaders that answered as `predict` does, to SAME.

    Raises UserError with the loader and the file where one does not, or does not load.
    """
    from hf_transfer.serving.odd_files import in_order, odd_files
    from hf_transfer.serving.predict import iter_predictions, ready

    model = ready(folder)
    labels = model.backbone.labels
    with tempfile.TemporaryDirectory() as scratch:
        files = odd_files(Path(scratch), model.backbone.image.channels)
        rows = list(iter_predictions(model, files, top=len(labels), tta=False))
        if failed := [row.error for row in rows if row.error]:
            raise UserError(f"cannot check {folder}: {failed[0]}")
        expected = np.array([in_order(row, labels) for row in rows])
        answers = _in_a_fresh_process(folder, Path(scratch))
    for loader, found in answers.items():
        apart = np.abs(np.array(found) - expected) / np.maximum(1, np.abs(expected))
        worst = apart.max(axis=1)
        if not (worst <= SAME).all():
            file = files[int(np.nan_to_num(worst, nan=np.inf).argmax())].name
            raise UserError(
                f"{folder} answers differently in {loader}: by {worst.max():.1e} on {file}, more "
                f"than {SAME:g}; save the model again"
            )
    return list(answers)


def _in_a_fresh_process(folder: Path, files: Path) -> dict[str, Any]:
    """Return the answers (N, labels) of each loader, in the order of the files' names."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-m", __name__, str(folder.resolve()), str(files)]
    with untrusted(f"{folder} in a fresh process"):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"{folder} does not load in a fresh process: {lines[-1]}")
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


# --- in the fresh process ----------------------------------------------------------------------


def _loaders(folder: str) -> Iterator[tuple[str, Answer]]:
    """Yield each loader's name, and its answer to a file: (labels,) in the model's order."""
    from hf_transfer.backbones.load import load_model
    from hf_transfer.serving.odd_files import in_order
    from hf_transfer.serving.predict import iter_predictions

    own = load_model(folder)
    backbone = own.backbone
    labels, channels = backbone.labels, backbone.image.channels

    def ours(file: Path) -> list[float]:
        (row,) = iter_predictions(own, file, top=len(labels), tta=False)
        return in_order(row, labels)

    yield "hf_transfer", ours
    if channels not in (1, 3, 4) or backbone.image.crop_mode == "border":
        return  # the card names our own command alone
    yield from _in_transformers(folder, backbone)
    if backbone.source == "timm":
        yield "timm", _in_timm(folder, backbone)


def _in_transformers(folder: str, backbone: Backbone) -> Iterator[tuple[str, Answer]]:
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
    from transformers.image_utils import load_image as theirs

    network = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    rgb = backbone.image.channels == 3

    def opened(file: Path) -> Any:
        if rgb and DEEP not in file.name:
            return theirs(str(file))
        return load_image(file, channels=backbone.image.channels)

    @torch.inference_mode()
    def auto(file: Path) -> list[float]:
        return _answers(network(**processor(opened(file), return_tensors="pt")).logits, backbone)

    yield "transformers", auto
    if rgb:
        classify: Any = pipeline("image-classification", model=network, image_processor=processor)

        def piped(file: Path) -> list[float]:
            rows = classify(opened(file), top_k=len(backbone.labels))
            told = {row["label"]: row["score"] for row in rows}
            return [told[label] for label in backbone.labels]

        yield "a pipeline", piped


def _in_timm(folder: str, backbone: Backbone) -> Answer:
    import timm
    import torch

    network: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(network)
    transform: Any = timm.data.create_transform(**settings, is_training=False)

    @torch.inference_mode()
    def answer(file: Path) -> list[float]:
        image = load_image(file, channels=backbone.image.channels)
        return _answers(network(transform(image)[None]), backbone)

    return answer


def _answers(logits: Any, backbone: Backbone) -> list[float]:
    if backbone.task == "multi_label":
        logits = logits.sigmoid()
    elif backbone.task != "regression":
        logits = logits.softmax(-1)
    values: list[float] = logits.flatten().tolist()
    return values


def main(folder: str, images: str) -> None:
    """Print the answers of every loader to the files in a folder, as one line of JSON."""
    files = sorted(Path(images).iterdir())
    found = {name: [answer(file) for file in files] for name, answer in _loaders(folder)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
