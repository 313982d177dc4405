"""A finished model scored on labelled images, which are matched to its labels by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.base.bars import bar
from hf_transfer.base.boundary import said
from hf_transfer.base.errors import UserError
from hf_transfer.base.outputs import folder_to_write
from hf_transfer.base.signatures import checked
from hf_transfer.data.sources import Scan
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.results.metrics.by_name import measure
from hf_transfer.results.metrics.resampling import accuracy_interval
from hf_transfer.results.metrics.thresholds import shifted
from hf_transfer.results.places import place_name
from hf_transfer.serving.evaluate_images import check_known, chosen_of, listed_for, match_labels
from hf_transfer.serving.evaluate_page import write_evaluation
from hf_transfer.serving.evaluate_text import command_of
from hf_transfer.serving.familiar import alarms, familiar_of
from hf_transfer.serving.onnx_model import OnnxFacts, OnnxModel
from hf_transfer.serving.paired import by_group, compared
from hf_transfer.serving.pictures import Failed, batches
from hf_transfer.serving.predict import answering, averages, iter_predictions, network_of, outputs

if TYPE_CHECKING:
    from hf_transfer.serving.load import Model


@dataclass(frozen=True)
class Scored:
    """The outputs of a model for labelled images, row by row.

    `logits` (N, C) in the model's order, regression in units; `truth` (N,) or (N, C) of the same;
    `rows` are the places of the images in the data.
    """

    logits: np.ndarray[Any, Any]
    truth: np.ndarray[Any, Any]
    rows: np.ndarray[Any, Any]
    names: tuple[str, ...]


@checked
def evaluate(
    model: Model | PreTrainedModel | OnnxModel | str | Path,
    data: str | Path | DataSpec,
    *,
    compare: Model | PreTrainedModel | OnnxModel | str | Path | None = None,
    split: str | None = None,
    threshold: float | None = None,
    tta: bool | None = None,
    unknown: bool = False,
    group: str | None = None,
    out: str | Path | None = None,
    page_images: bool | None = None,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Return how well a model does on labelled images, as plain JSON values.

    `data` is a folder of class folders, a table, or a DataSpec that names its columns. Labels are
    matched by name; `labels` says which of the data or the model have no partner, and images of
    labels that the model lacks are left out. `split` is one of the data's own or "all" (default:
    its test images, else its validation images, else all). `metrics` has every metric of the task
    with n and a 95% interval, and each class. `tta` averages each image's answer with its mirror
    image's (default: as saved with the model). `threshold` counts, of classes, answers of at least
    that probability only; of several labels it is the probability from which one counts as
    present. `unknown` counts the images that the model calls unlike its training: false
    alarms among those of its labels, and those found among images of labels that it lacks, with
    the AUROC of the distance. `compare` is another model: what it does on the same images, with a
    paired test. `group` is a column of the table, or a pattern on the files' names with one group:
    metrics come for each group, and intervals draw whole ones. `out` is a folder to write
    evaluation.json and the page report.html to, with images unless `page_images` is False (None:
    unless some are DICOM files). `batch_size` images are passed through the network at once. Raises
    UserError.
    """
    if threshold is not None and not 0 < threshold < 1:
        raise UserError(f"threshold is {threshold}; it is a probability between 0 and 1")
    place = None if out is None else folder_to_write(out)
    model = answering(model)
    backbone = model.backbone
    other = None if compare is None else answering(compare)
    _check_asked(model, other, threshold, unknown)
    spec = data if isinstance(data, DataSpec) else DataSpec(path=str(data))
    spec = spec if group is None else replace(spec, group=group)
    found, chosen = chosen_of(spec, backbone.task, backbone.labels, split)
    matched = match_labels(found, backbone.labels)
    if other is not None:
        check_known(found, other.backbone.labels, f"{_name(compare, other)}'s")
    scored, failed = _scored(model, found, batch_size, tta, "evaluate")
    asked = {"split": split, "threshold": threshold, "tta": tta, "unknown": unknown}
    result: dict[str, Any] = {
        "command": command_of({**asked, "group": group, "compare": "OTHER" if compare else None}),
        "data": found.path,
        "split": chosen,
        "task": backbone.task,
        "labels": matched,
        "unreadable": failed,
        "tta": averages(model, tta),
    }
    logits = _from_threshold(result, scored, threshold, backbone)
    groups = None if found.groups is None else [found.groups[row] for row in scored.rows]
    metrics = measure(backbone.task, logits, scored.truth, scored.names, groups=groups)
    if groups is not None:
        metrics["per_group"] = by_group(backbone.task, logits, scored.truth, groups)
    for row in metrics.get("per_class", ()):
        if row["recall"] is not None:
            row["recall_interval"] = accuracy_interval(round(row["recall"] * row["n"]), row["n"])
    result["metrics"] = metrics
    if other is not None:
        theirs, _ = _scored(other, found, batch_size, tta, "compare")
        apart = compared(backbone.task, scored, theirs, groups)
        result["comparison"] = {"other": _name(compare, other), **apart}
    if unknown:
        result["unknown"] = _unknown(model, found, batch_size)
    if place is not None:
        write_evaluation(result, model, found, scored, place, page_images)
    return result


def _name(given: Any, model: Any) -> str:
    """Return what to call a model that was given as a path, a repository, or itself."""
    if not isinstance(given, (str, Path)):
        return place_name(model.backbone.id)
    folder = Path(given)
    inside = folder.name == "model" and folder.is_dir()  # of a run, whose name says more
    return folder.resolve().parent.name if inside else place_name(str(given))


def _check_asked(model: Any, other: Any, threshold: float | None, unknown: bool) -> None:
    """Raise UserError for what a model cannot tell, before it has answered any image."""
    task = model.backbone.task
    if threshold is not None and task == "regression":
        raise UserError("a regression has no probabilities; leave --threshold out")
    if other is not None and other.backbone.task != task:
        raise UserError(f"the models answer different questions: {task} and {other.backbone.task}")
    if unknown:
        familiar_of(network_of(model))


def unlabelled_images(data: str | Path | DataSpec, backbone: Any, most: int) -> Iterator[Any]:
    """Yield at most `most` images of labelled data, spread evenly, of its training split if any."""
    spec = data if isinstance(data, DataSpec) else DataSpec(path=str(data))
    found = listed_for(spec, backbone.task, backbone.labels)
    found = found.take(found.splits.where("train")) if "train" in found.images else found
    count = len(found.targets)
    yield from _images(found, sorted({count * i // most for i in range(most)}))


# --- outputs -----------------------------------------------------------------------------------


def _scored(
    model: PreTrainedModel, found: Scan, batch_size: int, tta: bool | None, what: str
) -> tuple[Scored, list[dict[str, str]]]:
    """Return a model's outputs for the images whose labels it knows, and those that fail."""
    labels, task = model.backbone.labels, model.backbone.task
    place = {label: i for i, label in enumerate(labels)}
    own = [place.get(label) for label in found.labels]
    rows = [
        row
        for row, target in enumerate(found.targets)
        if task != "classification" or own[target] is not None
    ]
    logits, kept, failed = [], [], []
    number = iter(rows)
    with bar(len(rows), what) as progress:
        images = _images(found, rows)
        for batch in batches(images, model.backbone.image, batch_size):
            logits.append(_in_units(model, batch.pixels, tta))
            for error in batch.errors:
                row = next(number)
                if error:
                    failed.append({"file": found.files[row], "error": error})
                else:
                    kept.append(row)
            progress.update(len(batch.errors))
    if not kept:
        raise UserError(f"{found.path}: none of its {len(rows):,} images can be read")
    answers = torch.cat(logits).numpy()
    if not np.isfinite(answers).all():
        raise UserError(
            "the model's answers are not numbers; its weights or its config.json are damaged"
        )
    truth, columns = _truth(found, kept, own, len(labels))
    if task != "classification":
        answers = answers[:, columns]
    names = labels if task == "classification" else tuple(labels[i] for i in columns)
    return Scored(answers, truth, np.array(kept), names), failed


def _unknown(model: PreTrainedModel, found: Scan, batch_size: int) -> dict[str, Any]:
    """Return how many images of the model's labels, and of others, are called unknown."""
    rows = list(range(len(found.targets)))
    options: Any = {"batch_size": batch_size, "unknown": True}
    own = [label in model.backbone.labels for label in found.labels]
    classes = found.task == "classification"
    strange = [classes and not own[target] for target in found.targets]
    told = iter_predictions(model, _images(found, rows), **options)
    both = zip(told, strange, strict=True)
    pairs = [(one.unlike, other) for one, other in both if one.unlike is not None]
    return alarms([one for one, _ in pairs], [other for _, other in pairs])


def _images(found: Scan, rows: list[int]) -> Iterator[Any]:
    """Yield what `batches` takes for each row: a path, or bytes from a table."""
    root = Path(os.path.abspath(found.root))
    for row in rows:
        if found.table is None:
            yield root / found.files[row]
            continue
        try:
            with found.opened(row) as content:
                yield content
        except (OSError, UserError) as error:
            yield Failed(found.files[row], said(error))


def _truth(
    found: Scan, rows: list[int], own: list[int | None], count: int
) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Return the labels of rows in the model's order, and the columns that the data tells of."""
    if found.task == "classification":
        return np.array([own[found.targets[row]] for row in rows]), list(range(count))
    dtype = np.float64 if found.task == "regression" else np.int64
    truth = np.zeros((len(rows), count), dtype)
    for at, row in enumerate(rows):
        target = found.targets[row]
        values = target if found.task == "regression" else [1] * len(target)
        for label, value in zip(found.places(target), values, strict=True):
            if (column := own[label]) is not None:
                truth[at, column] = value
    columns = sorted(column for column in own if column is not None)
    return truth[:, columns], columns


def _in_units(model: PreTrainedModel, pixels: torch.Tensor, tta: bool | None) -> torch.Tensor:
    """Return outputs float64 (B, C) as logits, of a regression in units."""
    found, scale = outputs(model, pixels, averages(model, tta)), model.backbone.scale
    return (torch.as_tensor(scale.to_units(found)) if scale else found).double()


def _from_threshold(
    result: dict[str, Any], scored: Scored, threshold: float | None, backbone: Backbone | OnnxFacts
) -> Any:
    """Return the outputs to measure where answers count from a probability on, and note it: from
    the one given, else from the model's own."""
    if threshold is None:
        if not backbone.thresholds:
            return scored.logits
        own = dict(zip(backbone.labels, backbone.thresholds, strict=True))
        result["thresholds"] = own
        return shifted(scored.logits, [own[name] for name in scored.names])
    if result["task"] == "classification":
        result["confident"] = _confident(scored, threshold)
        return scored.logits
    result["threshold"] = threshold
    return scored.logits - np.log(threshold / (1 - threshold))


def _confident(scored: Scored, threshold: float) -> dict[str, Any]:
    """Return how many answers have at least this probability, and how many of these are right."""
    shares = torch.from_numpy(scored.logits).softmax(-1).numpy()
    sure = shares.max(axis=1) >= threshold
    right = int((shares.argmax(axis=1) == scored.truth)[sure].sum())
    n = int(sure.sum())
    return {
        "threshold": threshold,
        "n": n,
        "of": len(sure),
        "accuracy": right / n if n else None,
        "interval": accuracy_interval(right, n) if n else None,
    }
