"""What a user sees while a run trains: a line an epoch, and silence from the libraries below."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from hf_transfer.report import RunReport


class EpochLines(TrainerCallback):
    """Says one line an epoch: losses and the accuracy on validation."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.loss: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.loss = logs["loss"]

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        if state.epoch is None or self.loss is None:
            return
        words = [f"  epoch {state.epoch:g} of {state.num_train_epochs}", f"loss {self.loss:.4f}"]
        words.append(f"validation loss {metrics['eval_loss']:.4f}")
        if "eval_accuracy" in metrics:
            words.append(f"accuracy {metrics['eval_accuracy']:.4f}")
        self.say(", ".join(words))
        self.loss = None


def quiet() -> None:
    """Keep the libraries' own notices and bars from the user's terminal; errors still come."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("timm").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"torch|transformers|timm|accelerate")


def summary(report: RunReport) -> str:
    """Return a run's result in a few lines: accuracy with its interval, and over seeds."""
    metrics = report.metrics
    low, high = metrics["intervals"]["accuracy"]
    lines = [
        f"validation accuracy {metrics['accuracy']:.4f} ({low:.4f} to {high:.4f}, 95% interval, "
        f"n = {metrics['n']}), macro F1 {metrics['macro_f1']:.4f}"
    ]
    if "test" in metrics:
        test = metrics["test"]
        low, high = test["intervals"]["accuracy"]
        lines.append(
            f"test accuracy {test['accuracy']:.4f} ({low:.4f} to {high:.4f}, n = {test['n']})"
        )
    if report.seeds:
        spread = report.seeds["metrics"]["accuracy"]
        lines.append(
            f"over {report.seeds['n']} seeds: mean {spread['mean']:.4f}, min {spread['min']:.4f}, "
            f"max {spread['max']:.4f}"
        )
    lines.append(f"{report.seconds['wall']:.0f} s, {report.seconds['training']:.0f} s in training")
    lines.extend(f"note: {warning}" for warning in report.warnings)
    return "\n".join(lines)
