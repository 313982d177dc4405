"""Metrics of several labels at once: logits and flags to numbers, label by label and over all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hf_transfer.results.metrics import ranking
from hf_transfer.results.metrics.classification import AUROC_BUDGET, finite
from hf_transfer.results.metrics.resampling import Floats, intervals, mend_flat, weights_of

NO_POSITIVE = "no label has a positive row"


def multilabel_metrics(
    logits: ArrayLike,
    labels: ArrayLike,
    label_names: Sequence[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    tables: bool = True,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Return the metrics of logits (N, L) against labels (N, L) of 0 and 1, as plain JSON values.

    A label counts as predicted where its logit is above 0, its probability above one half. `map`
    and `auroc` are means over the labels for which they are defined, `macro_f1` over those there or
    predicted; `all_right` is the share of images with every label right. What is undefined is
    None, with the cause under `reasons`. `intervals` are 95% percentile bootstrap of rows, or of
    `groups` (0: none); `tables` adds `per_label`.
    """
    scores, truth = _checked(logits, labels)
    n, count = scores.shape
    names = [str(i) for i in range(count)] if label_names is None else list(label_names)
    if len(names) != count:
        raise ValueError(f"{len(names)} label names for {count} columns of logits")
    rows = _Labels(scores, truth)
    once = np.ones((1, n))
    result: dict[str, Any] = {"n": n}
    result |= {
        name: float(value[0]) if np.isfinite(value[0]) else None
        for name, value in rows.measured(once, ranked=True).items()
    }
    result["reasons"] = {}
    if result["map"] is None:
        result["reasons"]["map"] = NO_POSITIVE
    if result["auroc"] is None:
        result["reasons"]["auroc"] = "no label has a positive row and another"
    for name in ("micro_f1", "macro_f1"):
        if result[name] is None:
            result["reasons"][name] = "no label is positive or predicted"
    ranked = bootstrap * n * count <= AUROC_BUDGET
    result["intervals"], undefined = intervals(
        n,
        bootstrap,
        seed,
        lambda drawn: rows.measured(weights_of(drawn, n), ranked),
        cells=count // 4,
        groups=groups,
    )
    reason = "labels are so rare that many resamples hold none of them"
    result["reasons"] |= {f"{k} interval": reason for k in undefined if result[k] is not None}
    result["reasons"] |= mend_flat(result["intervals"], result, n, groups, ("all_right",))
    if not ranked:
        reason = f"{n} images of {count} labels are too many to resample"
        result["reasons"] |= dict.fromkeys(("map interval", "auroc interval"), reason)
    if tables:
        result["per_label"] = rows.label_by_label(names)
    return result


class _Labels:
    """What each row says of each label; the metrics of a resample are weighted sums of it."""

    def __init__(self, scores: Floats, truth: Any) -> None:
        self.scores, self.truth, self.guess = scores, truth, scores > 0
        self.hits = (self.truth & self.guess).astype(np.float64)
        self.either = self.truth.astype(np.float64) + self.guess
        self.right = (self.truth == self.guess).all(axis=1)
        self.usual = self._by_label(np.ones((1, len(scores))), ranked=True)

    def _by_label(self, weights: Floats, ranked: bool) -> dict[str, Floats]:
        """Return what is a mean over labels, label by label (L, B); NaN where undefined."""
        found = {}
        if ranked:
            for name, curve in (("map", ranking.average_precision), ("auroc", ranking.auroc)):
                places = range(self.scores.shape[1])
                found[name] = np.stack(
                    [curve(self.scores[:, i], self.truth[:, i], weights) for i in places]
                )
        either = weights @ self.either
        f1 = 2 * (weights @ self.hits) / np.maximum(either, 1)
        found["macro_f1"] = np.where(either > 0, f1, np.nan).T
        return found

    def measured(self, weights: Floats, ranked: bool) -> dict[str, Floats]:
        """Return B values of each metric under row weightings (B, N); NaN where undefined.

        A label that a resample lacks counts as in all rows: left out, it would make resamples
        without the hard labels look good.
        """
        found = {
            name: _mean_defined(_filled(values, self.usual[name]))
            for name, values in self._by_label(weights, ranked).items()
        }
        hits, either = weights @ self.hits, weights @ self.either
        whole = either.sum(axis=1)
        found["micro_f1"] = np.where(whole > 0, 2 * hits.sum(axis=1) / np.maximum(whole, 1), np.nan)
        found["all_right"] = weights @ self.right / weights.sum(axis=1)
        return found

    def label_by_label(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return a row for each label: in how many images it is, and how well it is told."""
        once = np.ones((1, len(self.scores)))
        seen, guessed = self.truth.sum(axis=0), self.guess.sum(axis=0)
        hits = self.hits.sum(axis=0)
        rows = []
        for i, name in enumerate(names):
            column = self.scores[:, i], self.truth[:, i], once
            rows.append(
                {
                    "label": name,
                    "n": int(seen[i]),
                    "predicted": int(guessed[i]),
                    "precision": _ratio(hits[i], guessed[i]),
                    "recall": _ratio(hits[i], seen[i]),
                    "f1": _ratio(2 * hits[i], seen[i] + guessed[i]),
                    "average_precision": _defined(ranking.average_precision(*column)[0]),
                    "auroc": _defined(ranking.auroc(*column)[0]),
                }
            )
        return rows


def _checked(logits: ArrayLike, labels: ArrayLike) -> tuple[Floats, Any]:
    scores, truth = finite(logits).astype(np.float64, copy=False), np.asarray(labels)
    if truth.shape != scores.shape or scores.ndim != 2:
        raise ValueError(f"logits {scores.shape} and labels {truth.shape}: both must be (N, L)")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels of several at once must be 0 or 1")
    return scores, truth.astype(bool)


def _filled(values: Floats, usual: Floats) -> Floats:
    """Return (L, B) values with `usual` (L, 1) for undefined ones, where a resample has any."""
    known = np.isfinite(values)
    filled: Floats = np.where(known | ~known.any(axis=0), values, usual)
    return filled


def _mean_defined(values: Floats) -> Floats:
    """Return the mean over labels of (L, B) values, of those that are numbers; else NaN."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    result: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return result


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
