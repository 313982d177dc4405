"""Batches of one image, in which BatchNorm over 1 x 1 positions sees one value per channel."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from hf_transfer.backbones.access import evaluating
from hf_transfer.base.errors import RecipeError
from hf_transfer.planning.data_checks import Batches, single_image
from hf_transfer.planning.phase import Phase
from hf_transfer.training.freezing import still_modules
from hf_transfer.training.seam import Seam

LAYERS = nn.modules.batchnorm._BatchNorm


def check_single_images(trainer: Seam, phases: Sequence[Phase], sync: bool) -> None:
    """Raise RecipeError, as the plan does, for phases in which a batch has one image, and a layer
    that is not frozen would take statistics of a single value: torch refuses that in the middle of
    the training."""
    images, count = trainer.train_dataset, trainer.processes.count
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        return
    found: set[str] | None = None
    problems = []
    for phase in phases:
        own = trainer.args.dataloader_drop_last, sync and count > 1
        batches = Batches(len(images), phase.spec.batch_size, count, *own)
        if not batches.single(phase.spec):
            continue
        found = _single_valued(trainer) if found is None else found
        prefix, spec = trainer.backbone.prefix, phase.spec
        still = still_modules(
            trainer.model, prefix, phase.network, phase.parameters, spec.still_norms
        )
        layers = [path for path in sorted(found) if path not in still]
        if layers:
            problems.append(single_image(phase, batches, layers[0].removeprefix(prefix)))
    if problems:
        raise RecipeError(problems)


def _single_valued(trainer: Seam) -> set[str]:
    """Return the names of layers that see one value per channel of a single image."""
    found: set[str] = set()

    def watch(path: str) -> Any:
        def hook(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if args[0].numel() == args[0].shape[1]:
                found.add(path)

        return hook

    model, images = trainer.model, trainer.train_dataset
    layers = {path: m for path, m in model.named_modules() if isinstance(m, LAYERS)}
    if not layers:
        return found
    with evaluating(model), torch.no_grad(), ExitStack() as stack:
        for path, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(watch(path)).remove)
        batch = trainer.model_inputs(trainer.data_collator([images[0]]))
        model(**{key: value for key, value in batch.items() if key != "labels"})
    return found
