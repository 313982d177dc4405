"""Metrics: logits and labels to numbers, each with its n and an interval where one is honest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_transfer.recipe import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ECE_BINS = 15
CONFIDENCE = 0.95
# A chunk of resamples holds about this many drawn rows; the result does not depend on it.
CHUNK = 400_000
# Ranking every class in every resample costs resamples x n x classes; no interval beyond this.
AUROC_BUDGET = 400_000_000
# The share of resamples in which AUROC must be defined for its interval to be stated.
AUROC_DEFINED = 0.95


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
) -> dict[str, Any]:
    """Return the metrics of logits (N, C) against labels (N,), as plain JSON values.

    Scalars are in 0..1 but `nll` (nats, mean); what is undefined is None, with the cause under
    `reasons`. `intervals` holds 95% percentile bootstrap intervals from `bootstrap` resamples of
    rows (0: none); `ece` has none, since resampling biases it upwards. Ties go to the first class.
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
    result["intervals"], reason = _intervals(facts, bootstrap, seed, auroc is not None)
    if reason:
        result["reasons"]["auroc interval"] = reason
    result["per_class"] = _per_class(facts, names)
    cells = np.bincount(truth * classes + facts.predicted, minlength=classes * classes)
    result["confusion"] = cells.reshape(classes, classes).tolist()
    return result


def compute_metrics(prediction: Any) -> dict[str, float]:
    """Return the defined scalars of `classification_metrics` for a Trainer's EvalPrediction.

    Takes the object or a pair (logits, labels); of several outputs the first is the logits.
    """
    logits, labels = prediction if isinstance(prediction, tuple) else _unpack(prediction)
    if isinstance(logits, tuple):
        logits = logits[0]
    values = classification_metrics(logits, labels, bootstrap=0)
    return {key: value for key, value in values.items() if isinstance(value, float)}


def multilabel_metrics(logits: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    """Return mAP, micro-F1 and macro-F1 of logits (N, L) against labels (N, L) of 0 and 1.

    A label counts as predicted where its logit is above 0. mAP is the mean over the labels that
    have a positive row. What is undefined is None, with the cause under `reasons`.
    """
    scores = _finite(logits)
    truth = np.asarray(labels)
    if truth.shape != scores.shape or scores.ndim != 2:
        raise ValueError(f"logits {scores.shape} and labels {truth.shape}: both must be (N, L)")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels of several at once must be 0 or 1")
    truth = truth.astype(bool)
    predicted = scores > 0
    hits = (predicted & truth).sum(axis=0)
    either = predicted.sum(axis=0) + truth.sum(axis=0)
    reasons = {} if truth.any() else {"map": "no label has a positive row"}
    if not either.any():
        reasons |= dict.fromkeys(("micro_f1", "macro_f1"), "no label is positive or predicted")
    precisions = [
        _average_precision(scores[:, i], truth[:, i])
        for i in range(scores.shape[1])
        if truth[:, i].any()
    ]
    return {
        "n": len(scores),
        "map": float(np.mean(precisions)) if precisions else None,
        "micro_f1": _ratio(2 * int(hits.sum()), int(either.sum())),
        "macro_f1": float(np.mean(2 * hits[either > 0] / either[either > 0]))
        if (either > 0).any()
        else None,
        "reasons": reasons,
    }


def regression_metrics(predictions: ArrayLike, targets: ArrayLike) -> dict[str, Any]:
    """Return MAE, RMSE (units of the target) and R2 (over all columns) of two arrays of one shape.

    R2 is None, with the cause under `reasons`, where the targets are all equal.
    """
    values, truth = _finite(predictions), np.asarray(targets, dtype=np.float64)
    if values.shape != truth.shape:
        raise ValueError(f"predictions {values.shape} and targets {truth.shape} differ in shape")
    residual = values - truth
    spread = float(((truth - truth.mean(axis=0)) ** 2).sum())
    return {
        "n": len(values),
        "mae": float(np.abs(residual).mean()),
        "rmse": float(np.sqrt((residual**2).mean())),
        "r2": 1 - float((residual**2).sum()) / spread if spread > 0 else None,
        "reasons": {} if spread > 0 else {"r2": "all targets are equal"},
    }


class _Rows:
    """What each row contributes, computed once; the metrics and every resample only add it up."""

    def __init__(self, scores: Floats, truth: Ints) -> None:
        self.truth = truth
        self.n, self.classes = scores.shape
        self.log_probabilities = log_softmax(scores)
        self.predicted: Ints = scores.argmax(axis=1)
        self.correct = self.predicted == truth
        own = scores[np.arange(self.n), truth][:, None]
        earlier = np.arange(self.classes) < truth[:, None]
        place = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
        self.top5 = place < 5
        self.nll: Floats = -self.log_probabilities[np.arange(self.n), truth]


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[Floats, Ints]:
    scores, truth = _finite(logits), np.asarray(labels)
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


def _finite(logits: ArrayLike) -> Floats:
    values = np.asarray(logits, dtype=np.float64)
    if values.size == 0:
        raise ValueError("there is nothing to measure: no row of logits")
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise UserError(
            f"{int(bad.sum())} of {values.size} logits are not finite, the first in row {row}: "
            "the training has diverged; lower the learning rate or the precision's risk (fp32)"
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
    count, classes = len(drawn), rows.classes
    offset = np.arange(count)[:, None] * classes

    def per_class(values: Ints, kept: NDArray[np.bool_] | None = None) -> Floats:
        cells = offset + values[drawn]
        chosen = cells.ravel() if kept is None else cells[kept[drawn]]
        found = np.bincount(chosen, minlength=count * classes).reshape(count, classes)
        return found.astype(np.float64)

    seen, guessed = per_class(rows.truth), per_class(rows.predicted)
    hits = per_class(rows.truth, rows.correct)
    either = seen + guessed
    f1 = 2 * hits / np.maximum(either, 1)
    recall = hits / np.maximum(seen, 1)
    return {
        "accuracy": hits.sum(axis=1) / drawn.shape[1],
        "macro_f1": f1.sum(axis=1) / (either > 0).sum(axis=1),
        "balanced_accuracy": recall.sum(axis=1) / (seen > 0).sum(axis=1),
    }


def _calibration_error(rows: _Rows) -> float:
    """Expected calibration error, 15 bins of equal width (Guo et al. 2017, arXiv:1706.04599)."""
    confidence = np.exp(rows.log_probabilities.max(axis=1))
    bins = np.clip(np.ceil(confidence * ECE_BINS) - 1, 0, ECE_BINS - 1).astype(np.int64)
    gaps = np.bincount(bins, weights=rows.correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / rows.n)


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
    """The AUROC of one class against the rest under each of B row weightings (B, N).

    A tie counts half. NaN where a weighting leaves the class, or the rest, without a row.
    """
    scores = rows.log_probabilities[:, label]
    order = np.argsort(scores, kind="stable")
    positive = rows.truth[order] == label
    weights = weights[:, order]
    rivals = np.cumsum(np.where(positive, 0.0, weights), axis=1)
    # First and last place among the rows that tie with each positive row.
    level = scores[order]
    first = np.searchsorted(level, level[positive], side="left")
    last = np.searchsorted(level, level[positive], side="right") - 1
    below = np.where(first > 0, rivals[:, np.maximum(first - 1, 0)], 0.0)
    wins = (weights[:, positive] * (below + rivals[:, last]) / 2).sum(axis=1)
    pairs = weights[:, positive].sum(axis=1) * rivals[:, -1]
    result: Floats = np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)
    return result


def _average_precision(scores: Floats, truth: NDArray[np.bool_]) -> float:
    """The area under the precision-recall steps; rows that tie share one threshold."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision = hits[ends] / (ends + 1)
    return float((precision * np.diff(hits[ends], prepend=0)).sum() / hits[-1])


def _intervals(
    rows: _Rows, resamples: int, seed: int, auroc: bool
) -> tuple[dict[str, list[float]], str | None]:
    """Percentile bootstrap intervals over rows (Efron and Tibshirani 1993, chapter 13).

    And why there is none for a defined AUROC, where there is none.
    """
    if resamples < 1:
        return {}, None
    reason = None
    if auroc and resamples * rows.n * rows.classes > AUROC_BUDGET:
        auroc, reason = False, f"{rows.n} images of {rows.classes} classes are too many to resample"
    generator = np.random.default_rng(seed)
    chunks: list[dict[str, Floats]] = []
    step = max(1, CHUNK // rows.n)
    for start in range(0, resamples, step):
        size = (min(step, resamples - start), rows.n)
        drawn: Ints = generator.integers(0, rows.n, size=size)
        found = _tally(rows, drawn)
        if rows.classes > 5:
            found["top5"] = rows.top5[drawn].mean(axis=1)
        found["nll"] = rows.nll[drawn].mean(axis=1)
        if auroc:
            found["auroc"] = _resampled_auroc(rows, drawn)
        chunks.append(found)
    tail = 100 * (1 - CONFIDENCE) / 2
    intervals: dict[str, list[float]] = {}
    for name in chunks[0]:
        values = np.concatenate([chunk[name] for chunk in chunks])
        values = values[np.isfinite(values)]
        if len(values) >= AUROC_DEFINED * resamples:
            intervals[name] = [float(v) for v in np.percentile(values, [tail, 100 - tail])]
        else:
            reason = "a class has so few images that many resamples hold none of it"
    return intervals, reason


def _resampled_auroc(rows: _Rows, drawn: Ints) -> Floats:
    count = len(drawn)
    cells = (np.arange(count)[:, None] * rows.n + drawn).ravel()
    weights = np.bincount(cells, minlength=count * rows.n).astype(np.float64)
    weights = weights.reshape(count, rows.n)
    areas = [_class_auroc(rows, label, weights) for label in range(rows.classes)]
    result: Floats = np.mean(areas, axis=0)
    return result
