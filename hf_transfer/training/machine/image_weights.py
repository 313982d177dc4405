"""Shares of a step: each image counts once, whatever batches and processes a step is made of.

The last batches of an epoch are smaller, and among several processes accelerate fills them up with
images of the first; some processes may have none of their own left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

SHARE = "share"  # key of a batch's weight, where it is not 1

Batch = dict[str, Any]
ARRAYS = (torch.Tensor, np.ndarray)


def own_rows(images: int, batch_size: int, rank: int, count: int) -> tuple[int, int]:
    """Return how many images of an epoch's last batches are this process's own, and all of them."""
    everyone = images % (batch_size * count) or batch_size * count
    return min(max(everyone - rank * batch_size, 0), batch_size), everyone


def shared(
    batches: Sequence[Batch],
    images: int,
    batch_size: int,
    last: bool,
    rank: int = 0,
    count: int = 1,
) -> list[Batch]:
    """Return the batches of one step with only this process's own images, and their weights.

    The mean over a batch, times its weight, then averaged over batches and processes, is the mean
    over all images of the step. A batch without an image of its own keeps those it was filled with:
    every process has to run, and its weight is 0. `last`: the last of them ends the epoch.
    """
    own = [batch_size] * len(batches)
    everyone = [batch_size * count] * len(batches)
    if last:
        own[-1], everyone[-1] = own_rows(images, batch_size, rank, count)
    found = []
    for batch, rows in zip(batches, own, strict=True):
        weight = rows * count * len(batches) / sum(everyone)
        found.append(batch if weight == 1 else {**_first(batch, rows), SHARE: weight})
    return found


def _first(batch: Batch, rows: int) -> Batch:
    """Return the first rows of each array of a batch; all where that would leave none."""

    def cut(value: Any) -> Any:
        each = isinstance(value, list) or (isinstance(value, ARRAYS) and value.ndim > 0)
        return value[:rows] if each and rows else value

    return {key: cut(value) for key, value in batch.items()}


def counted(batches: Sequence[Batch]) -> Iterator[Batch]:
    """Yield the batches as Trainer counts their labels: those of weight 0 have none."""
    for batch in batches:
        none = batch.get(SHARE) == 0 and isinstance(batch.get("labels"), ARRAYS)
        yield {**batch, "labels": batch["labels"] * 0 - 100} if none else batch


def next_step(trainer: Any, batches: Iterator[Any], number: int) -> list[Any]:
    """Return the next `number` batches of a Trainer's epoch, shared; as they are where a data set
    has no length, or where accelerate was told to share in another way."""
    found = list(islice(batches, number))
    args, config = trainer.args, trainer.args.accelerator_config
    plain = config.even_batches and not config.split_batches and not args.dataloader_drop_last
    if not plain or not hasattr(trainer.train_dataset, "__len__"):
        return found
    if not found or not all(isinstance(batch, dict) for batch in found):
        return found
    here, last = trainer.processes, trainer.accelerator.gradient_state.end_of_dataloader
    images, size = len(trainer.train_dataset), trainer._train_batch_size
    return shared(found, images, size, last, here.rank, here.count)
