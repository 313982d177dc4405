"""Examples: which images a report shows, with what the model said of them and how sure it was."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hf_transfer.data.audit import Audit
from hf_transfer.data.findings import Finding, public_name
from hf_transfer.data.image_set import ImageSet
from hf_transfer.results.metrics.classification import log_softmax
from hf_transfer.results.metrics.regression import rounded
from hf_transfer.results.metrics.thresholds import shifted
from hf_transfer.results.words import JsonDict, listed, show_number

SIDE = 128  # pixels; shown somewhat smaller, so that they are sharp on fine screens
QUALITY = 72  # of WebP
BUDGET = 2_400_000  # characters of all pictures as often as the page shows them; it has 3 MB
MISTAKES, UNSURE = 24, 12
DOUBTFUL = 0.5  # how far the next answer may lie, of 1, for an answer to be uncertain
RIGHT, RIGHT_OF_EACH = 36, 3
CELLS, OF_A_CELL = 200, 8  # pictures of mistakes by pair of classes, and of each pair
SUSPECTS = 12  # of each kind of finding
SUSPICIOUS = ("near-duplicate", "likely-wrong-label")  # kinds whose images are shown begin so
DICOM = "dicom"  # the audit's word for images that may be of patients
NAMED = 4  # labels of an image that a caption names

Show = Callable[[int], str]


@dataclass(frozen=True)
class Answers:
    """What a model said of N images, in words and numbers.

    `sure` (N,) is the probability behind each answer (NaN of a regression). `wrong` (N,) is how
    wrong it was, 0 where it was right; `good` (N,) how good a right answer is; `doubt` (N,) how far
    another answer was, 0..1. `kinds` (N,) and `answers` (N,) are places of true and given classes.
    """

    truth: Show
    answer: Show
    sure: np.ndarray
    wrong: np.ndarray
    good: np.ndarray
    doubt: np.ndarray
    kinds: np.ndarray
    answers: np.ndarray | None = None


def examples(
    task: str,
    outputs: Any,
    images: ImageSet,
    findings: Sequence[Finding] = (),
    others: Sequence[ImageSet] = (),
    limits: Sequence[float] = (),
) -> JsonDict:
    """Return the pictures that say most about a model, and what it said of each; {} for none.

    `outputs` (N, C) are logits, or numbers of a regression, of `images`. The images that
    suspicious `findings` name are shown, too, also those that are among the `others`. Of several
    labels, `limits` are the probabilities from which they count as there (default: one half).
    """
    if not len(images):
        return {}
    logits = np.asarray(outputs, np.float64)
    found = _of_labels(logits, images, limits) if limits else _ANSWERS[task](logits, images)
    gallery = _Gallery(images, found)
    order = np.argsort(-found.wrong, kind="stable")
    mistakes = [row for row in order.tolist() if found.wrong[row] > 0]
    result: JsonDict = {"mistakes": gallery.take(mistakes, MISTAKES)}
    taken = set(mistakes[:MISTAKES])
    nearest = np.argsort(found.doubt, kind="stable").tolist()
    doubtful = [row for row in nearest if row not in taken and found.doubt[row] < DOUBTFUL]
    if np.isfinite(found.doubt).all():
        result["unsure"] = gallery.take(doubtful, UNSURE)
    result["right"] = gallery.take(_right_ones(found), RIGHT, times=2)
    for finding in findings:
        if finding.kind.startswith(SUSPICIOUS):
            rows = gallery.named(finding.files, [images, *others], task)
            result.setdefault("suspects", []).append({"kind": finding.kind, "rows": rows})
    if found.answers is not None:
        result["cells"] = list(_cells(found, mistakes, gallery))
    return {"rows": gallery.rows, **result}


def shows_images(page_images: str | None, audit: Audit) -> bool:
    """Return whether a page shows images: as the recipe says, else unless some are DICOM files."""
    if page_images is not None:
        return page_images != "none"
    return all(found.kind != DICOM for found in audit.findings)


class _Gallery:
    """Pictures as they are taken, within the budget; each is made once."""

    def __init__(self, images: ImageSet, found: Answers) -> None:
        self.images, self.found, self.left = images, found, BUDGET
        self.rows: list[JsonDict] = []
        self._at: dict[int, int] = {}

    def take(self, rows: Iterable[int], most: int, times: int = 1) -> list[int]:
        """Return the places in `rows` of at most so many of these images, shown so many `times`."""
        places: list[int] = []
        for row in rows:
            if len(places) == most or self.left <= 0:
                break
            if row not in self._at:
                self._at[row] = len(self.rows)
                self.rows.append(self._told(row))
            places.append(self._at[row])
            self.left -= times * len(self.rows[places[-1]]["picture"])
        return places

    def named(self, files: Sequence[str], sets: Sequence[ImageSet], task: str) -> list[int]:
        """Return the places in `rows` of these files, in their order; they may be in any set."""
        places: list[int] = []
        for name in files:
            for number, images in enumerate(sets):
                row = images.files.index(name) if name in images.files else None
                if row is None or len(places) == SUSPECTS or self.left <= 0:
                    continue
                if number == 0:
                    places += self.take([row], 1)
                else:
                    self.rows.append(_unasked(images, row, task))
                    places.append(len(self.rows) - 1)
                    self.left -= len(self.rows[-1]["picture"])
        return places

    def _told(self, row: int) -> JsonDict:
        found = self.found
        return {
            "file": _file(self.images, row),
            "truth": found.truth(row),
            "answer": found.answer(row),
            "sure": float(found.sure[row]) if np.isfinite(found.sure[row]) else None,
            "picture": picture(self.images.pixels[row]),
        }


def picture(pixels: np.ndarray) -> str:
    """Return an image, uint8 (S, S, C), as a small WebP in base 64; of other than 1, 3 or 4
    channels the first is shown."""
    channels = pixels.shape[2]
    if channels not in (3, 4):
        pixels = pixels[:, :, 0]
    shown = Image.fromarray(np.ascontiguousarray(pixels))
    return encoded(shown, SIDE)


def encoded(image: Image.Image, most: int) -> str:
    """Return a picture as WebP in base 64, with sides of at most so many pixels."""
    shown = image.convert("RGB")
    shown.thumbnail((most, most), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    shown.save(content, "WEBP", quality=QUALITY, method=4)
    return base64.b64encode(content.getvalue()).decode()


def _right_ones(found: Answers) -> list[int]:
    """Return the best answers of each kind, a few of each."""
    by_kind: dict[int, list[int]] = defaultdict(list)
    for row in np.argsort(-found.good, kind="stable").tolist():
        if found.wrong[row] <= 0:
            by_kind[int(found.kinds[row])].append(row)
    each = max(1, min(RIGHT_OF_EACH, RIGHT // max(1, len(by_kind))))
    each = each if len(by_kind) > 1 else UNSURE
    return [row for kind in sorted(by_kind) for row in by_kind[kind][:each]]


def _unasked(images: ImageSet, row: int, task: str) -> JsonDict:
    """Return an image that the model was not asked about."""
    truth = _truth(task, images)(row)
    shown = picture(images.pixels[row])
    return {
        "file": _file(images, row),
        "truth": truth,
        "answer": "",
        "sure": None,
        "picture": shown,
    }


def _file(images: ImageSet, row: int) -> str:
    return public_name(images.files[row]) if images.files else f"image {row}"


def _cells(found: Answers, mistakes: Sequence[int], gallery: _Gallery) -> Iterable[list[Any]]:
    """Yield [true class, class said, places in `rows`] of each pair that was confused."""
    assert found.answers is not None
    by_cell: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in mistakes:
        by_cell[int(found.kinds[row]), int(found.answers[row])].append(row)
    left = CELLS
    for (kind, answer), rows in sorted(by_cell.items(), key=lambda item: -len(item[1])):
        if taken := gallery.take(rows, min(OF_A_CELL, left)):
            yield [kind, answer, taken]
            left -= len(taken)


# --- tasks -------------------------------------------------------------------------------------


def _truth(task: str, images: ImageSet) -> Show:
    """Return what each image is labelled with, in words."""
    labels: Any = images.labels
    names = images.names
    if task == "classification":
        return lambda row: names[int(labels[row])]
    if task == "multi_label":
        return lambda row: _listed_labels(labels[row] > 0, names)
    exact = labels.astype(np.float64)
    exact = exact if images.scale is None else images.scale.to_units(exact)
    told = np.stack([rounded(column) for column in exact.T], axis=1)
    return lambda row: _number_words(told[row], names)


def _listed_labels(flags: np.ndarray, names: Sequence[str]) -> str:
    return listed([names[i] for i in np.flatnonzero(flags).tolist()], NAMED) or "none"


def _number_words(values: np.ndarray, names: Sequence[str]) -> str:
    if len(names) == 1:
        return show_number(float(values[0]), 4)
    told = zip(names, values.tolist(), strict=True)
    return listed([f"{name} {show_number(value, 3)}" for name, value in told], NAMED)


def _of_classes(logits: np.ndarray, images: ImageSet) -> Answers:
    shares = np.exp(log_softmax(logits))
    said, truth = shares.argmax(axis=1), images.labels
    ranked = np.sort(shares, axis=1)
    names = images.names
    return Answers(
        truth=_truth("classification", images),
        answer=lambda row: names[int(said[row])],
        sure=shares.max(axis=1),
        wrong=np.where(said == truth, 0.0, shares.max(axis=1)),
        good=shares.max(axis=1),
        doubt=ranked[:, -1] - ranked[:, -2],
        kinds=truth,
        answers=said,
    )


def _of_labels(logits: np.ndarray, images: ImageSet, limits: Sequence[float] = ()) -> Answers:
    """Answers of several labels: each image by the label that the model is most wrong about, or
    where it is right by its least certain one."""
    truth, names = images.labels.astype(bool), images.names
    shares = _sigmoid(logits)
    decisive = _sigmoid(shifted(logits, limits)) if limits else shares
    there = decisive > 0.5
    off = np.abs(decisive - truth)
    worst, rows = off.argmax(axis=1), np.arange(len(off))
    wrong = np.where(off.max(axis=1) > 0.5, off.max(axis=1), 0.0)

    shown = np.where(truth.any(axis=1), truth.argmax(axis=1), len(names))
    return Answers(
        truth=_truth("multi_label", images),
        answer=lambda row: _listed_labels(there[row], names),
        sure=np.where(there, shares, 1 - shares)[rows, worst],
        wrong=wrong,
        good=-off.max(axis=1),
        doubt=2 * np.abs(decisive - 0.5).min(axis=1),
        kinds=shown,
    )


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    found: np.ndarray = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
    return found


def _of_numbers(outputs: np.ndarray, images: ImageSet) -> Answers:
    names, scale = images.names, images.scale
    said = outputs if scale is None else scale.to_units(outputs)
    truth = images.labels.astype(np.float64)
    spread = truth.std(axis=0)  # of targets in units of their own, none should decide alone
    off = (np.abs(outputs - truth) / np.where(spread > 0, spread, 1)).mean(axis=1)
    return Answers(
        truth=_truth("regression", images),
        answer=lambda row: _number_words(said[row], names),
        sure=np.full(len(off), np.nan),
        wrong=np.where(off > np.median(off), off, 0.0),
        good=-off,
        doubt=np.full(len(off), np.nan),
        kinds=np.zeros(len(off), np.int64),
    )


_ANSWERS: dict[str, Callable[[np.ndarray, ImageSet], Answers]] = {
    "classification": _of_classes,
    "multi_label": _of_labels,
    "regression": _of_numbers,
}
