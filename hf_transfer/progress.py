"""What a user sees while a run trains: a line an epoch, and silence from the libraries below."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.report import RunReport
from hf_transfer.results.words import metric_words

SECOND = {"classification": "macro_f1", "multi_label": "macro_f1", "regression": "mae"}


class EpochLines(TrainerCallback):
    """Says one line an epoch: losses, and accuracy (mAP, R2) on validation."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.loss: float | None = None
        self.solved: float | None = None  # the regularisation of a head that was solved for

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.loss, self.solved = logs["loss"], logs.get("regularisation")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        if state.epoch is None or self.loss is None:
            return
        done = f"epoch {state.epoch:g} of {state.num_train_epochs}"
        if self.solved is not None:
            done = f"solved in {state.global_step} steps, regularisation {self.solved:.3g}"
        words = [f"  {done}", f"loss {self.loss:.4f}"]
        words.append(f"validation loss {metrics['eval_loss']:.4f}")
        for name in (task.headline for task in TASKS.values()):
            if f"eval_{name}" in metrics:
                words.append(f"{name} {metrics[f'eval_{name}']:.4f}")
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
    """Return a run's result in lines: its leading metric with the interval, over seeds too."""
    leads, second = report.task.headline, SECOND[report.task.name]
    lines = [_measured("validation", report.metrics, leads, second)]
    if "test" in report.metrics:
        lines.append(_measured("test", report.metrics["test"], leads))
    spread = report.seeds.get("metrics", {}).get(leads)
    if spread:
        lines.append(
            f"over {report.seeds['n']} seeds: mean {spread['mean']:.4f}, min {spread['min']:.4f}, "
            f"max {spread['max']:.4f}"
        )
    lines.append(f"{report.seconds['wall']:.0f} s, {report.seconds['training']:.0f} s in training")
    lines.extend(f"note: {warning}" for warning in report.warnings)
    return "\n".join(lines)


def _measured(split: str, metrics: dict[str, Any], leads: str, second: str = "") -> str:
    """Return what a split's images gave: the leading metric with its interval, and a second."""
    if metrics.get(leads) is None:
        why = metrics["reasons"].get(leads, "it is undefined")
        return f"{split} {leads} not measured: {why} (n = {metrics['n']})"
    bounds = metrics["intervals"].get(leads)
    sure = f"{bounds[0]:.4f} to {bounds[1]:.4f}, 95% interval, " if bounds else ""
    text = f"{split} {leads} {metrics[leads]:.4f} ({sure}n = {metrics['n']})"
    other = metrics.get(second) if second in metric_words(metrics) else None
    return text if other is None else f"{text}, {second.replace('_f1', ' F1')} {other:.4f}"
