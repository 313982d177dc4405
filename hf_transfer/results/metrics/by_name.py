"""Metrics by name: ours without any import, those of the `evaluate` library by name or path."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.data.scale import Scale
from hf_transfer.recipe.tasks import CLASSIFICATION, TASKS
from hf_transfer.results.metrics.classification import classification_metrics, softmax
from hf_transfer.results.metrics.multi_label import multilabel_metrics
from hf_transfer.results.metrics.pretexts import (
    found_metrics,
    nearer_metrics,
    shift_metrics,
    told_metrics,
)
from hf_transfer.results.metrics.regression import regression_metrics

# `evaluate.load(str(MODULE))` gives all our metrics as an `evaluate` module, offline.
MODULE = Path(__file__).with_name("evaluate_module.py")
OURS = ("accuracy", "top5", "macro_f1", "balanced_accuracy", "auroc", "ece", "nll")
OF_CLASSES = ("accuracy", "macro_f1", "balanced_accuracy")  # what needs no probabilities
# What a foreign metric may not overwrite in a report's metrics.
RESERVED = {
    *OURS,
    "n",
    "groups",
    "reasons",
    "intervals",
    "per_class",
    "confusion",
    "calibration",
    "test",
}

Measure = Callable[[ArrayLike, ArrayLike], dict[str, Any]]
MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "classification": classification_metrics,
    "multi_label": multilabel_metrics,
    "regression": regression_metrics,
    "rotation": told_metrics,
    "contrastive": found_metrics,
    "redundancy": found_metrics,
    "exemplar": found_metrics,
    "slow": nearer_metrics,
    "motion": shift_metrics,
}


def measure(
    task: str,
    outputs: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str] | None = None,
    scale: Scale | None = None,
    bootstrap: int = 1000,
    tables: bool = True,
    groups: Sequence[Any] | NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Return the metrics of a task; standardised numbers are first put back in units by `scale`.

    With `groups`, one for each row, intervals are over groups, and `groups` counts them.
    """
    if scale is not None:
        outputs, labels = scale.to_units(outputs), scale.to_units(labels)
    options: dict[str, Any] = {"bootstrap": bootstrap, "tables": tables, "groups": groups}
    found = MEASURES[task](outputs, labels, names, **options)
    return found if groups is None else {**found, "groups": len(set(groups))}


class EpochMetrics:
    """`compute_metrics` for a Trainer: the metrics of the task and `extra` ones; `names` lists all.

    Each of `extra` is tried on random logits of so many `classes`, so that its names are known,
    and its failures come, before anything is trained. Raises UserError.
    """

    def __init__(
        self,
        extra: Sequence[Measure] = (),
        classes: int = 2,
        task: str = "classification",
        scale: Scale | None = None,
    ) -> None:
        self.extra, self.task, self.scale = tuple(extra), task, scale
        self.kept: list[tuple[Any, ...]] = []  # batches of an evaluation under way
        self.names = frozenset({*TASKS[task].metrics, *self._tried(classes)})

    def of_classes(self) -> EpochMetrics:
        """Return these metrics as they are where predictions are classes (N,) instead of logits."""
        fewer = copy.copy(self)
        fewer.names = self.names - {*TASKS[self.task].metrics} | {*OF_CLASSES}
        return fewer

    def _tried(self, classes: int) -> dict[str, Any]:
        if not self.extra:
            return {}  # the logits of thousands of classes are hundreds of megabytes
        labels = np.arange(4 * classes) % classes
        logits = np.random.default_rng(0).normal(size=(len(labels), classes))
        return self._extras(logits, labels)

    def _extras(self, logits: Any, labels: Any) -> dict[str, Any]:
        return {key: value for one in self.extra for key, value in one(logits, labels).items()}

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, Any]:
        """Return the defined scalars of an EvalPrediction; of several outputs the first counts.

        Predictions may be classes (N,), as `preprocess_logits_for_metrics` may make them of logits.

        Without `compute_result` a batch is only kept for the call that has it, as Trainer's
        `batch_eval_metrics` wants it.
        """
        logits, labels = prediction.predictions, prediction.label_ids
        if isinstance(logits, tuple):
            logits = logits[0]
        if not compute_result or self.kept:
            self.kept.append(tuple(np.asarray(each.cpu()) for each in (logits, labels)))
            if not compute_result:
                return {}
            logits, labels = (np.concatenate(each) for each in zip(*self.kept, strict=True))
            self.kept.clear()
        told = np.ndim(logits) == 1 and self.task == CLASSIFICATION.name
        if told:
            logits = np.eye(max(*logits, *labels) + 1)[logits]
        found = measure(self.task, logits, labels, scale=self.scale, bootstrap=0, tables=False)
        ours = {key: value for key, value in found.items() if isinstance(value, float)}
        ours = {key: value for key, value in ours.items() if not told or key in OF_CLASSES}
        return {**self._extras(logits, labels), **ours}


def load_metric(name_or_path: str) -> Measure:
    """Return a function from logits (N, C) and labels (N,) to named numbers.

    Takes one of OURS, the path of an `evaluate` module, or the name of one on the Hub; the last
    two run the code that they name. A metric that wants classes gets the most probable one, one
    that wants scores gets probabilities; `average` is macro and `multi_class` ovr where it asks.
    Names that are ours come out prefixed. Raises UserError, at once, if it cannot be loaded.
    """
    if name_or_path in OURS:
        return lambda logits, labels: _ours(name_or_path, logits, labels)
    metric = _load(name_or_path)
    return lambda logits, labels: _measure(metric, name_or_path, logits, labels)


def _ours(name: str, logits: ArrayLike, labels: ArrayLike) -> dict[str, Any]:
    values = classification_metrics(logits, labels, bootstrap=0, tables=False)
    return {name: values[name]} if name in values else {}


def _load(name_or_path: str) -> Any:
    path = Path(name_or_path).expanduser()
    local = path.exists() or path.suffix == ".py" or name_or_path.startswith((".", "/", "~"))
    if local and not path.exists():
        raise UserError(f"metric file {name_or_path} does not exist; give a path that does")
    import evaluate

    if local:
        with untrusted(
            f"the metric {name_or_path}", "it must define a subclass of evaluate.Metric"
        ):
            return evaluate.load(str(path), keep_in_memory=True)
    near = difflib.get_close_matches(name_or_path, OURS, n=1)
    hint = f"write {near[0]} if you meant that" if near else f"use one of {', '.join(OURS)}"
    remedy = f"{hint}, or give the path of a metric file"
    with untrusted(f"the metric {name_or_path!r} from the Hub", remedy):
        return evaluate.load(name_or_path, keep_in_memory=True)


def _measure(metric: Any, name: str, logits: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    probabilities = softmax(logits)
    classes = probabilities.shape[1]
    taken = inspect.signature(metric._compute).parameters
    asked = {"average": "macro", "multi_class": "ovr"} if classes > 2 else {}
    options = {key: value for key, value in asked.items() if key in taken}
    key, inputs = _inputs(metric, name, probabilities)
    with untrusted(f"what the metric {name!r} gives for {classes} classes"):
        found = metric.compute(**{key: inputs, "references": np.asarray(labels)}, **options)
    numbers = {
        key: float(value)
        for key, value in found.items()
        if np.ndim(value) == 0 and isinstance(value, (int, float, np.number))
    }
    if not numbers:
        raise UserError(f"metric {name!r} returned no number, only {', '.join(found) or 'nothing'}")
    stem = Path(name).stem
    return {f"{stem}_{key}" if key in RESERVED else key: value for key, value in numbers.items()}


def _inputs(metric: Any, name: str, probabilities: Any) -> tuple[str, Any]:
    """The name of the metric's input and what it gets: classes, one score, or all of them."""
    import datasets

    features = metric.features[0] if isinstance(metric.features, list) else metric.features
    keys = [key for key in features if key != "references"]
    if len(keys) != 1 or "references" not in features:
        raise UserError(
            f"metric {name!r} takes {', '.join(features)}; a metric of a recipe takes predictions "
            "and references"
        )
    kind = features[keys[0]]
    if not isinstance(kind, datasets.Value):
        return keys[0], probabilities
    if not kind.dtype.startswith("float"):
        return keys[0], probabilities.argmax(axis=1)
    if probabilities.shape[1] != 2:
        raise UserError(
            f"metric {name!r} takes one score per image, so it measures two classes, not "
            f"{probabilities.shape[1]}"
        )
    return keys[0], probabilities[:, 1]
