"""Our metrics as one `evaluate` module: `evaluate.load(PATH_OF_THIS_FILE)`, without the network.

Configurations: classification (logits (N, C), labels (N,)), multilabel (logits and labels (N, L))
and regression (predictions and targets (N,)). What they return is what our own functions return.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets  # noqa: TID253 - nothing imports this file but evaluate and who uses evaluate
import evaluate  # noqa: TID253

from hf_transfer.results.metrics.classification import classification_metrics
from hf_transfer.results.metrics.multi_label import multilabel_metrics
from hf_transfer.results.metrics.regression import regression_metrics

NUMBER, NUMBERS = datasets.Value("float64"), datasets.Sequence(datasets.Value("float64"))
LABEL, FLAGS = datasets.Value("int64"), datasets.Sequence(datasets.Value("int64"))
Measure = Callable[..., dict[str, Any]]
CONFIGURATIONS: dict[str, tuple[Any, Any, Measure]] = {
    "default": (NUMBERS, LABEL, classification_metrics),
    "classification": (NUMBERS, LABEL, classification_metrics),
    "multilabel": (NUMBERS, FLAGS, multilabel_metrics),
    "regression": (NUMBER, NUMBER, regression_metrics),
}


class TransferMetrics(evaluate.Metric):
    """`compute(predictions=logits, references=labels, **options)` with our functions' options."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in CONFIGURATIONS:
            raise ValueError(
                f"no configuration {self.config_name!r}; there are {', '.join(CONFIGURATIONS)}"
            )
        predictions, references, _ = CONFIGURATIONS[self.config_name]
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions: logits before softmax; references: labels",
            features=datasets.Features({"predictions": predictions, "references": references}),
        )

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
        return CONFIGURATIONS[self.config_name][2](predictions, references, **options)
