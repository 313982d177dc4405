"""Weights of a step's images: each counts once, however a step is split among processes.

The last batches of an epoch are smaller, and among several processes accelerate fills them up with
images of the first; some processes may have none of their own left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.state import GradientState
from torch.utils.data import BatchSampler

from hf_transfer.base.processes import Processes

SHARE = "share"  # key of a batch's weight, where it is not 1

Batch = dict[str, Any]
ARRAYS = (torch.Tensor, np.ndarray)


class CountedBatches(BatchSampler):
    """The same batches, and how many rows each of them had in this epoch: what the sampler drew,
    whatever length it or the data set has."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches
        self.sizes: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        self.sizes = []
        for batch in self.batches:
            self.sizes.append(len(batch))  # now: accelerate fills the last ones up
            yield batch

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    @property
    def sampler(self) -> Any:
        """What draws the rows."""
        return self.batches.sampler

    @sampler.setter
    def sampler(self, sampler: Any) -> None:
        self.batches.sampler = sampler

    def last(self, rank: int, count: int) -> tuple[int, int]:
        """Return how many rows of the epoch's last batches are this process's own, and all."""
        group = self.sizes[(len(self.sizes) - 1) // count * count :]
        return group[rank] if rank < len(group) else 0, sum(group)


def count_rows(loader: Any) -> None:
    """Make the loader of one of several processes count the rows that it shares with the others,
    unless accelerate was told to share them in another way."""
    shard = getattr(loader, "batch_sampler", None)
    if not isinstance(shard, BatchSamplerShard):
        return
    if shard.even_batches and not shard.split_batches and not shard.drop_last:
        shard.batch_sampler = CountedBatches(shard.batch_sampler)


def _counted_batches(loader: Any) -> CountedBatches | None:
    """Return what `count_rows` left in a loader, also where its first batches are skipped."""
    found = getattr(loader, "batch_sampler", None)
    while found is not None and not isinstance(found, CountedBatches):
        found = getattr(found, "batch_sampler", None)
    return found


def next_step(
    batches: Iterator[Any], number: int, progress: GradientState, here: Processes
) -> list[Any]:
    """Return the next `number` batches of an epoch, weighted; as they are where they are not
    dictionaries of rows, or several processes do not count theirs."""
    found, loader, ended = [], None, False
    for batch in islice(batches, number):
        found.append(batch)
        loader, ended = progress.active_dataloader, progress.end_of_dataloader
    own = [_rows(batch) for batch in found]
    if not all(own):
        return found
    everyone = [rows * here.count for rows in own]
    if here.count > 1:
        counted = _counted_batches(loader)
        if counted is None:
            return found
        if ended:
            own[-1], everyone[-1] = counted.last(here.rank, here.count)
    return weighted(found, own, everyone, here.count)


def weighted(
    batches: Sequence[Batch], own: Sequence[int], everyone: Sequence[int], count: int = 1
) -> list[Batch]:
    """Return the batches of one step with only this process's own rows, and their weights.

    `own` is how many rows of each batch belong to this process, `everyone` how many all `count`
    processes have. The mean over a batch, times its weight, then averaged over batches and
    processes, is the mean over all images of the step. A batch without an image of its own keeps
    those it was filled with: every process has to run, and its weight is 0.
    """
    found = []
    for batch, rows in zip(batches, own, strict=True):
        weight = rows * count * len(batches) / sum(everyone)
        whole = weight == 1 and rows == _rows(batch)
        found.append(batch if whole else {**_first(batch, rows), SHARE: weight})
    return found


def _rows(batch: Any) -> int:
    """Return how many images a batch has; 0 where it does not say."""
    if not isinstance(batch, dict):
        return 0
    each = (value for value in batch.values() if _has_rows(value))
    return len(next(each, ()))


def _has_rows(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, ARRAYS) and value.ndim > 0)


def _first(batch: Batch, rows: int) -> Batch:
    """Return the first rows of each array of a batch; all where that would leave none."""

    def cut(value: Any) -> Any:
        return value[:rows] if _has_rows(value) and rows else value

    return {key: cut(value) for key, value in batch.items()}


def counted(batches: Sequence[Batch]) -> Iterator[Batch]:
    """Yield the batches as Trainer counts their labels: those of weight 0 have none."""
    for batch in batches:
        none = batch.get(SHARE) == 0 and isinstance(batch.get("labels"), ARRAYS)
        yield {**batch, "labels": batch["labels"] * 0 - 100} if none else batch
