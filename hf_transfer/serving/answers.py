"""Predictions as text, JSON, JSON Lines or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.base.bars import bar
from hf_transfer.base.boundary import as_text, printable
from hf_transfer.base.errors import UserError
from hf_transfer.serving.pictures import find_images
from hf_transfer.serving.predict import ANSWERS, Prediction, answering, iter_predictions

MOST_PADDED = 40  # characters: one long label should not push the others far apart
FORMS = ("text", "json", "jsonl", "csv")


class Answers:
    """Lines about images as they are predicted, in one of FORMS; `answered` counts the images, and
    `failed` those without an answer."""

    def __init__(
        self,
        model: str | Path,
        images: Sequence[str] | Iterator[str],
        form: str = "text",
        top: int | None = None,
        batch_size: int = 32,
        unknown: bool = False,
        tta: bool | None = None,
        workers: int = 0,
    ) -> None:
        self.model: Any = answering(model)
        self.unknown, self.tta, self.workers = unknown, tta, workers
        self.images: Any = find_images(images) if isinstance(images, Sequence) else images
        self.form, self.batch_size, self.answered, self.failed = form, batch_size, 0, 0
        self.top = top or (3 if self.model.backbone.task == "classification" else None)

    def __iter__(self) -> Iterator[str]:
        yield from lines_of(self._counted(), self.form, self.model.backbone, self.top, self.unknown)

    def _counted(self) -> Iterator[Prediction]:
        total = len(self.images) if isinstance(self.images, Sized) else None
        keys = ("batch_size", "unknown", "tta", "workers")
        options: Any = {key: getattr(self, key) for key in keys}
        found = iter_predictions(self.model, self.images, top=self.top, **options)
        with bar(total, "predict") as progress:
            for prediction in found:
                self.answered += 1
                self.failed += prediction.error is not None
                progress.update()
                yield prediction


def lines_of(
    predictions: Iterable[Prediction],
    form: str,
    model: Backbone,
    top: int | None = None,
    unknown: bool = False,
) -> Iterator[str]:
    """Yield predictions as lines of one of FORMS; those of jsonl and csv as soon as they are there.

    The columns of csv are those of the `model`, for the `top` that was asked for; where
    `unknown` images are told, two more.
    """
    if form not in FORMS:
        raise UserError(f"unknown form {form!r}; choose one of {', '.join(FORMS)}")
    if form == "text":
        yield from filter(None, [format_predictions(predictions)])
    elif form == "json":
        yield json.dumps([row.to_dict() for row in predictions], indent=1)
    elif form == "jsonl":
        yield from (json.dumps(row.to_dict()) for row in predictions)
    else:
        yield from _csv(predictions, model, top, unknown)


def _csv(
    predictions: Iterable[Prediction], model: Backbone, top: int | None, unknown: bool
) -> Iterator[str]:
    """Yield a header and a row for each image: several labels and targets have a column each, of
    classes the likeliest are in columns label_1, probability_1, ..."""
    ranked = model.task == "classification"
    count = min(top or ANSWERS, len(model.labels))
    places = [word for i in range(count) for word in (f"label_{i + 1}", f"probability_{i + 1}")]
    extra = ["unknown", "unlike"] if unknown else []
    yield _cells(["file", "error", *extra, *(places if ranked else model.labels)])
    for row in predictions:
        cells = [row.file, row.error or ""]
        if unknown:
            told_apart = row.unlike is not None
            cells += [str(row.unknown).lower(), f"{row.unlike:.4g}"] if told_apart else ["", ""]
        if ranked:
            told = [cell for name, share in row.labels for cell in (name, f"{share:.6g}")]
            cells += told or [""] * len(places)
        else:
            by_name = dict(row.values if row.values is not None else row.labels)
            cells += [f"{by_name[name]:.7g}" if name in by_name else "" for name in model.labels]
        yield _cells(cells)


def _cells(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def format_predictions(predictions: Iterable[Prediction]) -> str:
    """Return one line per image: its name, then labels with probabilities, or targets with their
    values, or why it has none; below them from which probability several labels count."""
    rows = list(predictions)
    files = [_shown(row.file) for row in rows]
    names = max(map(len, files), default=0)
    longest = max((len(label) for row in rows for label, _ in row.there), default=0)
    labels = min(longest, MOST_PADDED)
    lines = []
    for file, row in zip(files, rows, strict=True):
        cells = [f"{label:<{labels}} {share:.3f}" for label, share in row.there]
        cells += [f"{target} {value:.7g}" for target, value in row.values or ()]
        if not cells and row.labels:
            label, share = row.labels[0]
            cells = [f"none; the likeliest is {label} {share:.3f}"]
        if row.unknown:
            cells = ["none of these (unlike anything in training); otherwise", *cells]
        why = (row.error or "").removeprefix(f"{printable(row.file)}: ")
        text = f"error: {why}" if row.error else printable("   ".join(cells))
        lines.append(f"{file:<{names}}   {text}")
    limits = {row.threshold for row in rows if row.threshold is not None and not row.thresholds}
    for own in {row.thresholds for row in rows if row.thresholds}:
        told = ", ".join(f"{name} {limit:.3g}" for name, limit in own)
        lines.append(f"Labels count from their own probabilities on: {printable(told)}.")
    lines += [f"Labels with a probability of {limit:g} or more." for limit in limits]
    return "\n".join(lines)


def _shown(name: str) -> str:
    """Return a file's name without control characters; bytes of no text become JSON's escapes."""
    return printable(as_text(name))
