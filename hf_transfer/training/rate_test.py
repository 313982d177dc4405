"""`lr: auto`: the rate of a phase by a range test before it, which leaves no trace."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerState

from hf_transfer.backbones.access import same_random
from hf_transfer.base.boundary import untrusted
from hf_transfer.base.files import read_limited, write_text
from hf_transfer.planning.phase import Phase
from hf_transfer.training import adapter_layers
from hf_transfer.training.phase_state import PhaseState
from hf_transfer.training.seam import Seam

logger = logging.getLogger(__name__)

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 60  # rates that are tried, in equal ratios
SMOOTHING = 0.7  # share of the mean so far in the mean of the losses
EXPLODES = 3.0  # times the lowest loss: the test ends there
BELOW = 10.0  # how far below the rate of the lowest loss a phase trains
NOTE = "rate.json"


def rated(
    trainer: Seam,
    phase: Phase,
    apply: Callable[[Phase], PhaseState],
    folder: Path | None,
    resume: bool,
) -> Phase:
    """Return a phase with a rate in place of `auto`: a tenth of the rate at which the loss is
    lowest while rates rise from step to step.

    All weights, statistics and random states are as they were, bit for bit. `apply` makes the
    network ready for a phase. In `folder` the rate is kept for a `resume`. All processes call this
    together.
    Source: arXiv:1506.01186, section 3.3, and fastai's `lr_find`.
    """
    if phase.spec.lr != "auto":
        return phase
    kept = folder / NOTE if folder is not None else None
    rate = _kept(kept) if resume and kept and kept.is_file() else None
    if rate is None:
        with restored(trainer):
            losses = list(range_test(trainer, apply(phase)))
            rate = chosen(losses)
            adapter_layers.remove(trainer.model)
        rate = float(trainer.processes.all(rate)[0])
        logger.info("phase %s: lr: auto is %.2g, by a range test", phase.name, rate)
        if kept is not None and trainer.processes.main:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(kept, json.dumps({"lr": rate, "losses": losses}) + "\n")
    return replace(phase, spec=replace(phase.spec, lr=rate))


@contextmanager
def restored(trainer: Seam) -> Iterator[None]:
    """Give the model, the Trainer and all random generators back as they were."""
    model, state = trainer.model, trainer.state
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    training = {name: module.training for name, module in model.named_modules()}
    trainer.state = TrainerState()  # of epoch 0, whatever was trained before
    try:
        with same_random(model):
            yield
    finally:
        trainer.state, trainer.optimizer = state, None
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(before[name])
                tensor.grad = None
        for name, module in model.named_modules():
            module.training = training.get(name, module.training)


def range_test(trainer: Seam, state: PhaseState) -> Iterator[float]:
    """Yield the loss of each step while the rates rise; the network trains meanwhile."""
    model, spec, images = trainer.model, state.phase.spec, trainer.train_dataset
    optimizer = trainer.create_optimizer(model)
    usual = [group["lr"] / spec.head_lr for group in optimizer.param_groups]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    order = np.random.default_rng(state.args.seed).permutation(len(images))
    size, lowest = min(spec.batch_size, len(images)), math.inf
    for step, rate in enumerate(np.geomspace(LOWEST, HIGHEST, STEPS)):
        for group, scale in zip(optimizer.param_groups, usual, strict=True):
            group["lr"] = float(rate) * scale
        rows = [int(order[(step * size + i) % len(order)]) for i in range(size)]
        loss = step_loss(trainer, state, rows)
        value = loss.item()
        yield value
        lowest = min(lowest, value)
        if not math.isfinite(value) or value > EXPLODES**2 * max(lowest, 1e-3):
            return
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if spec.max_grad_norm:
            nn.utils.clip_grad_norm_(trained, spec.max_grad_norm)
        optimizer.step()


def step_loss(trainer: Seam, state: PhaseState, rows: Sequence[int]) -> torch.Tensor:
    """Return the loss of these images as the phase trains on them."""
    model, images = trainer.model, trainer.train_dataset
    drawn = images.__getitems__(rows) if hasattr(images, "__getitems__") else None
    batch = trainer.data_collator([images[row] for row in rows] if drawn is None else drawn)
    model.train()
    state.hold_still()
    inputs = trainer.model_inputs(batch)

    def trainers() -> tuple[torch.Tensor, Any]:
        if trainer.loss.function is None:
            outputs = model(**inputs)
            return (outputs["loss"] if isinstance(outputs, dict) else outputs[0]), outputs
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        return trainer.loss.function(outputs, labels, num_items_in_batch=None), outputs

    with trainer.accelerator.autocast():
        return trainer.loss(model, model, inputs, None, 1, state, trainers)[0]


def chosen(losses: Sequence[float]) -> float:
    """Return the rate to train at, by the losses of a range test in the order of its rates."""
    rates = np.geomspace(LOWEST, HIGHEST, STEPS)
    mean, smooth = 0.0, []
    for step, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smooth.append(mean / (1 - SMOOTHING**step))
        if not math.isfinite(loss) or smooth[-1] > EXPLODES * min(smooth):
            break
    known = [value if math.isfinite(value) else math.inf for value in smooth]
    return float(max(LOWEST, rates[int(np.argmin(known))] / BELOW))


def _kept(path: Path) -> float:
    with untrusted(str(path), "remove it to search for the rate again"):
        return float(json.loads(read_limited(path))["lr"])
