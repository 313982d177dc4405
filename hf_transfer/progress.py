"""What a user sees while a run trains: a line an epoch, and silence from the libraries below."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_transfer.base import bars
from hf_transfer.recipe.tasks import PROBES, TASKS

WATCHED = (*PROBES.values(), "rank")  # of the features, while a pretext trains


class EpochLines(TrainerCallback):
    """Print one line per epoch: losses, and accuracy (mAP, R2) on validation."""

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
        for name in dict.fromkeys((*(task.headline for task in TASKS.values()), *WATCHED)):
            if f"eval_{name}" in metrics:
                words.append(f"{name} {metrics[f'eval_{name}']:.4f}")
        with tqdm.external_write_mode():  # no line through a bar
            self.say(", ".join(words))
        self.loss = None


class TrainingBar(TrainerCallback):
    """A bar of each phase's steps: epoch, loss, accuracy (mAP, R2), and the time left."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.known: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar, at the step that a checkpoint goes on from."""
        self.bar, self.known = bars.bar(state.max_steps, Path(args.output_dir).name, "steps"), {}
        self.bar.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count a step."""
        if self.bar is not None:
            self._know(epoch=f"{state.epoch or 0:.1f}/{state.num_train_epochs}")
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the newest loss and the newest leading metric."""
        names = {"loss": "loss"} | {f"eval_{t.headline}": t.headline for t in TASKS.values()}
        self._know(**{name: f"{logs[key]:.4f}" for key, name in names.items() if key in logs})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _know(self, **facts: str) -> None:
        self.known |= facts
        if self.bar is not None:
            self.bar.set_postfix(self.known, refresh=False)


def quiet() -> None:
    """Hide the notices and bars of the libraries below; their errors are still shown."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("timm").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"torch|transformers|timm|accelerate")
