"""The images that a model was made with and finds most similar to a new one, where visitors may see
them.

Of a model that a visitor trained here these are its training images. Of another one they are the
training images in the folder that its recipe names, if this machine has it; otherwise those that
its report carries.
"""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.data.sources import scan
from hf_transfer.recipe.load import load_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_transfer.results.report import RunReport
    from hf_transfer.space.models import Networks, Shown

logger = logging.getLogger(__name__)
MOST = 240  # images of a model that are compared
LARGEST = 20_000  # images of a data set that is looked through for them
BATCH = 16
TRAINED, CARRIED = "Most similar training images", "Most similar images of its report"


@dataclass(frozen=True)
class Known:
    """Images with their labels and their features (N, D) of length 1."""

    title: str
    files: tuple[Path, ...]
    labels: tuple[str, ...]
    features: np.ndarray[Any, Any]

    def near(self, query: np.ndarray[Any, Any], count: int) -> list[tuple[Path, str, float]]:
        """Return the images most similar to features (D,): file, label and cosine."""
        cosines = self.features @ (query / max(float(np.linalg.norm(query)), 1e-12))
        rows = np.argsort(-cosines, kind="stable")[:count].tolist()
        return [(self.files[row], self.labels[row], float(cosines[row])) for row in rows]


def known_of(run: Path) -> Known | None:
    """Return the training images of a visitor's own run; None where it has no features."""
    if not (run / "features.npy").is_file():
        return None
    root = Path(json.loads((run / "shown.json").read_text(encoding="utf-8"))["root"])
    names = json.loads((run / "features.json").read_text(encoding="utf-8"))
    files = tuple(root / name for name in names)
    labels = tuple(file.parent.name for file in files)
    return Known(TRAINED, files, labels, _unit(np.load(run / "features.npy", allow_pickle=False)))


def learn(
    models: Sequence[Shown], networks: Networks, folder: Path, is_over: Callable[[], bool]
) -> None:
    """Compute the features of the images that models were made with, and give each model its own.

    It takes a while and runs beside the answers. A model whose images are not here has none.
    """
    for number, model in enumerate(models):
        try:
            with untrusted(f"the images of {model.title}"):
                title, files, labels = _images_of(model, folder / str(number))
                features = [_features(networks, model, part) for part in _parts(files, is_over)]
        except UserError as error:
            logger.info("no similar images: %s", error)
            continue
        if files and not is_over():
            model.known = Known(title, tuple(files), tuple(labels), _unit(np.concatenate(features)))


def _images_of(model: Shown, folder: Path) -> tuple[str, list[Path], list[str]]:
    report = model.report
    if report is None or not model.may_show:
        return TRAINED, [], []
    place = Path(str(report.data.get("path") or "nothing"))
    count = sum((report.data.get("images") or {}).values())
    if model.run is not None and place.exists() and count <= LARGEST:
        recipe = load_recipe(model.run / "recipe.yaml")
        found = scan(recipe.data, recipe.seed, recipe.task)
        rows = _some(found.splits.where("train").tolist())
        names = [_label(found.labels, found.targets[row]) for row in rows]
        return TRAINED, [found.root / found.files[row] for row in rows], names
    files, labels = carried(report, folder)
    return CARRIED, files, labels


def _label(labels: Sequence[str], target: Any) -> str:
    """Return the name of an image's class; "" where it has several labels, or numbers."""
    return labels[target] if isinstance(target, int) else ""


def carried(report: RunReport, folder: Path) -> tuple[list[Path], list[str]]:
    """Write the pictures that a report carries into a folder; return the files and their labels."""
    files, labels = [], []
    for i, row in enumerate(report.examples.get("rows", ())[:MOST]):
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(io.BytesIO(base64.b64decode(row["picture"]))) as image:
            files.append(folder / f"{i:03d}.png")
            image.convert("RGB").save(files[-1])
        labels.append(str(row["truth"]))
    return files, labels


def _parts(files: Sequence[Path], is_over: Callable[[], bool]) -> list[Sequence[Path]]:
    return [files[at : at + BATCH] for at in range(0, len(files), BATCH) if not is_over()]


def _features(networks: Networks, model: Shown, files: Sequence[Path]) -> np.ndarray[Any, Any]:
    from hf_transfer.serving.embed import embed

    def question(network: PreTrainedModel) -> np.ndarray[Any, Any]:
        return embed(network, list(files), keep=False).features

    return networks.ask(model, question)  # a few files: visitors are answered in between


def _some(rows: Sequence[int]) -> list[int]:
    """Return at most MOST rows, spread evenly."""
    at = np.unique(np.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().astype(int))
    return [rows[i] for i in at] if len(rows) else []


def _unit(features: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit: np.ndarray[Any, Any] = features / lengths.clip(1e-12)
    return unit
