"""The loss of a step: a task's own or the user's, with class weights, smoothing and L2-SP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from hf_transfer.backbones import access
from hf_transfer.base.machine import kept_memory
from hf_transfer.base.processes import Processes
from hf_transfer.inputs.pretexts import Pretext, pretext_of
from hf_transfer.planning.phase import Phase
from hf_transfer.training.loss import Objective, distance_from_start
from hf_transfer.training.machine import image_weights
from hf_transfer.training.phase_state import PhaseState
from hf_transfer.training.pseudo_loss import pseudo_sum


@dataclass
class StepLoss:
    """What is minimised."""

    objective: Objective
    processes: Processes
    function: Callable[..., Any] | None  # the user's own
    args: TrainingArguments
    of_logits: bool = True  # whether an evaluation gathers logits as they are
    start: dict[str, torch.Tensor] = field(default_factory=dict)  # the weights L2-SP pulls towards
    pretext: Pretext | None = None  # what makes inputs and labels of images without any

    def vary_as(self, phases: Sequence[Phase]) -> None:
        """Measure a pretext on images varied as in the last of these phases."""
        self.pretext = pretext_of(self.task, phases[-1].spec, self.args.seed) if phases else None

    def __call__(
        self,
        model: nn.Module,
        wrapped: nn.Module,
        inputs: dict[str, Any],
        items: torch.Tensor | int | None,
        accumulated: int,
        state: PhaseState | None,
        trainers: Callable[[], tuple[torch.Tensor, Any]],
    ) -> tuple[torch.Tensor, Any]:
        """Return the loss of a batch and the outputs, by running `wrapped`, which wraps the model.

        `items` is the number of labels of the whole step, None where Trainer divides by the number
        of batches that are `accumulated`; `trainers` is Trainer's own way to the same. Without
        `state` nothing is trained.
        """
        spec = state.phase.spec if state else None
        share = inputs.pop(image_weights.SHARE, None)
        if state:
            state.share = share
        soft = inputs.pop("soft_labels", None)
        for name in access.unused(model, inputs):  # dropped, as Trainer does
            del inputs[name]
        smoothing = spec.label_smoothing if spec else 0.0
        plain = soft is None and not smoothing and self.objective.is_plain
        plain = plain and isinstance(model, PreTrainedModel) and self.task == "classification"
        plain = plain and not (spec and spec.pseudo)
        if plain or self.function:
            loss, outputs = trainers()
        else:
            labels = inputs.pop("labels")
            logits = by_image(access.logits_of(wrapped(**inputs)), len(labels))
            beside = torch.zeros((), device=logits.device)
            if state and spec and spec.pseudo:
                classes = logits.shape[1] // (1 + 2 * spec.pseudo.per_image)
                own = classes, spec.pseudo.confidence
                beside, state.confident = pseudo_sum(logits[:, classes:], *own)
                beside, logits = spec.pseudo.weight * beside, logits[:, :classes]
            target = labels if soft is None else soft
            loss = self._mean(logits, target, labels, smoothing, items, beside)
            outputs = {"loss": loss, "logits": logits}
        if share is not None:  # a sum over all items of the step needs no weight
            loss = loss * (share if items is None else float(share > 0))
        if state and state.phase.spec.l2_sp:
            pull = self._pull(model, state)
            loss = loss + pull / (accumulated if items is not None else 1)
        return loss, outputs

    def _mean(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        labels: torch.Tensor,
        smoothing: float,
        items: torch.Tensor | int | None,
        beside: torch.Tensor,
    ) -> torch.Tensor:
        loss = self.objective.total(logits, target, smoothing) + beside
        if items is not None and self.args.average_tokens_across_devices:
            loss = loss * self.processes.count  # DDP divides by it again
        return loss / (labels.numel() if items is None else items)

    @property
    def task(self) -> str:
        """The task that this is the loss of."""
        return self.objective.task

    def _pull(self, model: nn.Module, state: PhaseState) -> torch.Tensor | float:
        backbone = state.backbone
        named = access.bare_names(model, backbone.prefix)
        far = distance_from_start(named, self.start, backbone.layout.head)
        return state.phase.spec.l2_sp * far

    def remember_start(self, model: nn.Module, prefix: str) -> None:
        """Keep the weights that there are as those that L2-SP pulls towards."""
        named = access.bare_names(model, prefix)
        self.start = {name: p.detach().clone() for name, p in named.items()}

    def evaluated(
        self, loop: Callable[..., EvalLoopOutput], *args: Any, **kwargs: Any
    ) -> EvalLoopOutput:
        """Return what Trainer's evaluation `loop` gives, with a loss that counts each image once.

        Trainer's mean over several processes covers the images that fill up the last batches a
        second time.
        """
        recounts = self.of_logits and self.processes.count > 1 and self.function is None
        if recounts:
            kwargs["prediction_loss_only"] = None
        with kept_memory():
            output = loop(*args, **kwargs)
        key, logits = f"{kwargs.get('metric_key_prefix', 'eval')}_loss", output.predictions
        if recounts and key in output.metrics and isinstance(logits, np.ndarray):
            labels = torch.from_numpy(output.label_ids)
            logits = torch.from_numpy(logits).float()
            size = self.args.eval_batch_size
            batches = zip(logits.split(size), labels.split(size), strict=True)
            total = sum(self.objective.total(*batch).item() for batch in batches)
            output.metrics[key] = total / labels.numel()
        return output


def by_image(logits: torch.Tensor, images: int) -> torch.Tensor:
    """Return the outputs (V * B, K) for V pictures of each of B images as (B, V * K)."""
    if len(logits) == images:
        return logits
    return logits.unflatten(0, (-1, images)).transpose(0, 1).flatten(1)
