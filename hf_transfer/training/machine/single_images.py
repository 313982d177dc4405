"""Batches of one image, which leave a BatchNorm layer over 1 x 1 places one value a channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from hf_transfer.backbones.access import evaluating
from hf_transfer.base.errors import UserError
from hf_transfer.planning.phase import Phase
from hf_transfer.training.freezing import still_modules
from hf_transfer.training.seam import Seam

LAYERS = nn.modules.batchnorm._BatchNorm


def check_single_images(trainer: Seam, phases: Sequence[Phase], sync: bool) -> None:
    """Raise UserError for a phase in which a batch has one image, and a layer that is not frozen
    would take statistics of a single value: torch refuses that in the middle of the training."""
    images, here = trainer.train_dataset, trainer.processes
    drops = trainer.args.dataloader_drop_last
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        return
    together = sync and here.count > 1
    found: set[str] | None = None
    for phase in phases:
        size = phase.spec.batch_size
        sizes = set(_batches(len(images), size, here.count, drops, together))
        if phase.spec.solve or 1 not in sizes:
            continue
        found = _single_valued(trainer) if found is None else found
        prefix, spec = trainer.backbone.prefix, phase.spec
        still = still_modules(
            trainer.model, prefix, phase.network, phase.parameters, spec.still_norms
        )
        layers = sorted(found - set(still))
        if layers:
            raise UserError(_said(phase, layers[0], len(images), here.count, drops, together))


def _batches(images: int, size: int, count: int, drops: bool, together: bool) -> Iterator[int]:
    """Yield how many images the batches of an epoch have, of each kind of them; of all processes
    `together` where statistics are theirs."""
    everyone = size * count
    if images >= everyone:
        yield everyone if together else size
    rest = 0 if drops else images % everyone
    if rest:
        yield from [rest] if together else [rest % size or size, min(rest, size)]


def _single_valued(trainer: Seam) -> set[str]:
    """Return the names of layers that one image gives one value a channel."""
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


def _said(phase: Phase, layer: str, images: int, count: int, drops: bool, together: bool) -> str:
    size = phase.spec.batch_size
    what = "each batch has one image"
    if size > 1:
        what = f"of {images} images in batches of {size} the last has one"
    tried = (each for each in (*range(size - 1, 1, -1), *range(size + 1, size + 99)))
    other = next(
        (n for n in tried if 1 not in set(_batches(images, n, count, drops, together))), None
    )
    mend = f"write batch_size: {other}, or " if other else ""
    return (
        f"phase {phase.name}: {what}, and {layer} (BatchNorm) would have one value a channel to "
        f"normalise by; {mend}still_norms: true"
    )
