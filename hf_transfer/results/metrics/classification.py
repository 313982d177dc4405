"""Metrics: logits and labels to numbers, each with its n and an interval where one is honest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_transfer.base.errors import UserError
from hf_transfer.results.metrics import ranking
from hf_transfer.results.metrics.resampling import (
    CHUNK,
    Floats,
    Ints,
    intervals,
    mend_flat,
    weights_of,
)

Scores = NDArray[np.floating[Any]]

ECE_BINS = 15
# Ranking every class in every resample costs resamples x n x classes; no interval beyond this.
AUROC_BUDGET = 400_000_000
MOST_CONFUSED = 200  # classes; the matrix of more has more cells than anyone reads


def log_softmax(logits: ArrayLike) -> Floats:
    """Return log-probabilities (N, C) in float64; exact for logits of any finite size."""
    values = np.asarray(logits, dtype=np.float64)
    shifted = values - values.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def softmax(logits: ArrayLike) -> Floats:
    """Return probabilities (N, C) in float64, each row summing to 1."""
    result: Floats = np.exp(log_softmax(logits))
    return result


def classification_metrics(
    logits: ArrayLike,
    labels: ArrayLike,
    label_names: Sequence[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    tables: bool = True,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Return the metrics of logits (N, C) against labels (N,), as plain JSON values.

    Scalars are in 0..1 but `nll` (nats, mean); what is undefined is None, with the cause under
    `reasons`. `intervals` holds 95% percentile bootstrap intervals from `bootstrap` resamples of
    rows, or of `groups` (0: none); `ece` has none, since resampling biases it upwards. Ties go to
    the first class.
    `tables` are `per_class`, `calibration` and, of up to MOST_CONFUSED classes, the matrix
    `confusion`.
    Raises UserError for logits that are not finite, ValueError for shapes that do not fit.
    """
    scores, truth = _checked(logits, labels)
    n, classes = scores.shape
    names = [str(i) for i in range(classes)] if label_names is None else list(label_names)
    if len(names) != classes:
        raise ValueError(f"{len(names)} label names for {classes} columns of logits")
    facts = _Rows(scores, truth)
    auroc, reason = _auroc(facts, names)
    result: dict[str, Any] = {"n": n, **_tallied(facts), "auroc": auroc}
    if classes > 5:
        result["top5"] = float(facts.top5.mean())
    result["ece"] = _calibration_error(facts)
    result["nll"] = float(facts.nll.mean())
    result["reasons"] = {"auroc": reason} if reason else {}
    result["intervals"], reason = _intervals(facts, bootstrap, seed, auroc is not None, groups)
    if reason:
        result["reasons"]["auroc interval"] = reason
    shares = ("accuracy", "top5")
    result["reasons"] |= mend_flat(result["intervals"], result, n, groups, shares)
    if tables:
        result["per_class"] = _per_class(facts, names)
        result["calibration"] = _calibration(facts)
        if classes <= MOST_CONFUSED:
            cells = np.bincount(truth * classes + facts.predicted, minlength=classes * classes)
            result["confusion"] = cells.reshape(classes, classes).tolist()
        else:
            result["reasons"]["confusion"] = (
                f"left out: {classes:,} classes make a matrix of {classes**2:,} cells"
            )
    return result


def compute_metrics(prediction: Any) -> dict[str, float]:
    """Return the defined scalars of `classification_metrics` for a Trainer's EvalPrediction.

    Takes the object or a pair (logits, labels); of several outputs the first is the logits.
    """
    logits, labels = prediction if isinstance(prediction, tuple) else _unpack(prediction)
    if isinstance(logits, tuple):
        logits = logits[0]
    values = classification_metrics(logits, labels, bootstrap=0, tables=False)
    return {key: value for key, value in values.items() if isinstance(value, float)}


class _Rows:
    """What each row contributes, computed once; the metrics and every resample only add it up.

    Logits are read in chunks of rows, so that no copy of them is held.
    """

    def __init__(self, scores: Scores, truth: Ints) -> None:
        self.scores, self.truth = scores, truth
        self.n, self.classes = scores.shape
        self.predicted: Ints = scores.argmax(axis=1)
        self.correct = self.predicted == truth
        # Most of very many classes are neither shown nor predicted, and need no column.
        self.kinds, found = np.unique([truth, self.predicted], return_inverse=True)
        self.truth_at, self.predicted_at = found.reshape(2, self.n)
        self.largest: Floats = scores.max(axis=1).astype(np.float64)
        self.log_sums = np.empty(self.n)
        self.top5 = np.empty(self.n, dtype=bool)
        for rows in _row_chunks(scores):
            self._read(rows)
        self.nll: Floats = -(self._shifted(np.arange(self.n), truth) - self.log_sums)
        count = len(self.kinds)
        seen, guessed = (
            np.bincount(at, minlength=count) for at in (self.truth_at, self.predicted_at)
        )
        hits = np.bincount(self.truth_at[self.correct], minlength=count)
        self.f1: Floats = 2 * hits / (seen + guessed)  # by class of `kinds`
        self.recall: Floats = np.where(seen > 0, hits / np.maximum(seen, 1), np.nan)

    def _read(self, rows: slice) -> None:
        scores, truth = self.scores[rows].astype(np.float64), self.truth[rows]
        own = scores[np.arange(len(truth)), truth][:, None]
        earlier = np.arange(self.classes) < truth[:, None]
        place = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
        self.top5[rows] = place < 5
        scores -= self.largest[rows, None]
        self.log_sums[rows] = np.log(np.exp(scores, out=scores).sum(axis=1))

    def _shifted(self, rows: Any, columns: Any) -> Floats:
        values: Floats = self.scores[rows, columns].astype(np.float64) - self.largest
        return values

    def log_probability(self, label: int) -> Floats:
        """Return the log-probability of one class in every row (N,)."""
        return self._shifted(slice(None), label) - self.log_sums

    @property
    def confidence(self) -> Floats:
        """The probability of the predicted class in every row (N,)."""
        result: Floats = np.exp(-self.log_sums)
        return result


def _row_chunks(scores: Scores) -> Iterator[slice]:
    step = max(1, CHUNK // scores.shape[-1])
    yield from (slice(start, start + step) for start in range(0, len(scores), step))


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[Scores, Ints]:
    scores, truth = finite(logits), np.asarray(labels)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"logits must be (N, C) with C of at least 2; got {scores.shape}")
    if truth.shape != scores.shape[:1]:
        raise ValueError(f"labels must be ({len(scores)},) as the logits; got {truth.shape}")
    if not np.issubdtype(truth.dtype, np.integer):
        raise ValueError(f"labels must be integers; got {truth.dtype}")
    if truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise ValueError(
            f"labels must lie in 0..{scores.shape[1] - 1}; got {truth.min()}..{truth.max()}"
        )
    return scores, truth.astype(np.int64)


def finite(logits: ArrayLike) -> Scores:
    """Return logits as floats. Raises UserError where one is not finite, ValueError for none."""
    values = np.asarray(logits)
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    if values.size == 0:
        raise ValueError("there is nothing to measure: no row of logits")
    counts = [int((~np.isfinite(values[rows])).sum()) for rows in _row_chunks(values)]
    if any(counts):
        start = next(rows for rows, n in zip(_row_chunks(values), counts, strict=True) if n).start
        row = start + int(np.argwhere(~np.isfinite(values[start:]))[0][0])
        raise UserError(
            f"{sum(counts)} of {values.size} logits are not finite, the first in row {row}: the "
            "training has diverged; lower the learning rate, or train with precision: fp32"
        )
    return values


def _unpack(prediction: Any) -> tuple[Any, Any]:
    return prediction.predictions, prediction.label_ids


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _tallied(rows: _Rows) -> dict[str, float]:
    """Accuracy, macro-F1 (classes seen or predicted) and balanced accuracy (classes seen)."""
    every = np.arange(rows.n)[None, :]
    return {name: float(value[0]) for name, value in _tally(rows, every).items()}


def _tally(rows: _Rows, drawn: Ints) -> dict[str, Floats]:
    """Accuracy, macro-F1 and balanced accuracy of each of B draws of row numbers (B, N)."""
    count, classes = len(drawn), len(rows.kinds)
    offset = np.arange(count)[:, None] * classes

    def per_class(values: Ints, kept: NDArray[np.bool_] | None = None) -> Floats:
        cells = offset + values[drawn]
        chosen = cells.ravel() if kept is None else cells[kept[drawn]]
        found = np.bincount(chosen, minlength=count * classes).reshape(count, classes)
        return found.astype(np.float64)

    seen, guessed = per_class(rows.truth_at), per_class(rows.predicted_at)
    hits = per_class(rows.truth_at, rows.correct)
    return {
        "accuracy": hits.sum(axis=1) / drawn.shape[1],
        "macro_f1": _class_mean(2 * hits, seen + guessed, rows.f1),
        "balanced_accuracy": _class_mean(hits, seen, rows.recall),
    }


def _class_mean(part: Floats, whole: Floats, usual: Floats) -> Floats:
    """Return the mean of shares (B, C) over the classes that the rows have.

    A class that a draw lacks counts as in all rows (`usual`, nan for one that these lack, too):
    left out, it would make draws without the hard classes look good.
    """
    share = np.where(whole > 0, part / np.maximum(whole, 1), usual)
    mean: Floats = share[:, ~np.isnan(usual)].mean(axis=1)
    return mean


def _calibration_error(rows: _Rows) -> float:
    """Expected calibration error, 15 bins of equal width (Guo et al. 2017, arXiv:1706.04599)."""
    gaps = np.bincount(_bins(rows), rows.correct - rows.confidence, ECE_BINS)
    return float(np.abs(gaps).sum() / rows.n)


def _bins(rows: _Rows) -> Ints:
    """Return in which of the bins of confidence each row lies (N,)."""
    found: Ints = np.clip(np.ceil(rows.confidence * ECE_BINS) - 1, 0, ECE_BINS - 1).astype(np.int64)
    return found


def _calibration(rows: _Rows) -> list[dict[str, Any]]:
    """Return how sure the model was and how often it was right, in each bin that has rows."""
    bins = _bins(rows)
    count, sure, right = (
        np.bincount(bins, weights, ECE_BINS) for weights in (None, rows.confidence, rows.correct)
    )
    return [
        {
            "n": int(count[i]),
            "confidence": float(sure[i] / count[i]),
            "accuracy": float(right[i] / count[i]),
        }
        for i in np.flatnonzero(count)
    ]


def _per_class(rows: _Rows, names: Sequence[str]) -> list[dict[str, Any]]:
    def tally(values: Ints) -> list[int]:
        return [int(v) for v in np.bincount(values, minlength=rows.classes)]

    seen, guessed, hits = tally(rows.truth), tally(rows.predicted), tally(rows.truth[rows.correct])
    return [
        {
            "label": name,
            "n": seen[i],
            "precision": _ratio(hits[i], guessed[i]),
            "recall": _ratio(hits[i], seen[i]),
            "f1": _ratio(2 * hits[i], seen[i] + guessed[i]),
        }
        for i, name in enumerate(names)
    ]


def _auroc(rows: _Rows, names: Sequence[str]) -> tuple[float | None, str | None]:
    """Macro one-vs-rest area under the ROC curve, or None and why it is undefined."""
    seen = np.bincount(rows.truth, minlength=rows.classes)
    missing = [names[i] for i in np.flatnonzero(seen == 0).tolist()]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return None, f"no image of class {missing[0]!r}{others}"
    # With two classes or more that all have an image, each class also has a negative.
    every = np.ones((1, rows.n))
    return float(np.mean([_class_auroc(rows, c, every)[0] for c in range(rows.classes)])), None


def _class_auroc(rows: _Rows, label: int, weights: Floats) -> Floats:
    """The AUROC of one class against the rest under each of B row weightings (B, N)."""
    return ranking.auroc(rows.log_probability(label), rows.truth == label, weights)


def _intervals(
    rows: _Rows, resamples: int, seed: int, auroc: bool, groups: Sequence[Any] | None
) -> tuple[dict[str, list[float]], str | None]:
    """Bootstrap intervals, and why there is none for a defined AUROC, where there is none."""
    reason = None
    if auroc and resamples * rows.n * rows.classes > AUROC_BUDGET:
        auroc, reason = False, f"{rows.n} images of {rows.classes} classes are too many to resample"

    def measure(drawn: Ints) -> dict[str, Floats]:
        found = _tally(rows, drawn)
        if rows.classes > 5:
            found["top5"] = rows.top5[drawn].mean(axis=1)
        found["nll"] = rows.nll[drawn].mean(axis=1)
        if auroc:
            found["auroc"] = _resampled_auroc(rows, drawn)
        return found

    found, undefined = intervals(rows.n, resamples, seed, measure, len(rows.kinds), groups)
    if undefined:
        reason = "a class has so few images that many resamples hold none of it"
    return found, reason


def _resampled_auroc(rows: _Rows, drawn: Ints) -> Floats:
    weights = weights_of(drawn, rows.n)
    areas = [_class_auroc(rows, label, weights) for label in range(rows.classes)]
    result: Floats = np.mean(areas, axis=0)
    return result
