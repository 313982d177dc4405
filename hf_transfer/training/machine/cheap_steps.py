"""What a step costs besides its arithmetic, left out where that changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler

from hf_transfer.data.arrays import give_back, glibc, zeros

# accelerate asks twice in every step whether this package is there, and has the disk searched for
# it: a third of a head's step.
ASKED = "lomo_optim"
AT_ONCE = 4096  # places that are Python's numbers at a time
SMALL_WORK = 2e7  # multiply-adds of a batch, below which waking a second thread costs more

TRIM, MAPPED = -1, -3  # glibc's names in malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
USUAL = {TRIM: 64 * 2**20, MAPPED: 32 * 2**20}  # where glibc itself comes to with large blocks
KEPT = 2**30


@contextmanager
def light_steps() -> Iterator[None]:
    """Answer from memory what the libraries ask in every step, until the block ends."""
    absent = ASKED not in sys.modules and find_spec(ASKED) is None
    if absent:
        sys.modules[ASKED] = None  # type: ignore[assignment]  # Python's word for 'not there'
    try:
        yield
    finally:
        if absent:
            sys.modules.pop(ASKED, None)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep what a step frees for the next one, until the block ends; on a CPU, with glibc.

    Large blocks would go back to the system, which gives them anew page by page, each filled with
    zeros: 17,000 pages in a step of ResNet-10-T (batch 32, 96 px), an eighth to a third of it.
    """
    library = glibc()
    if library is None:
        yield
        return
    for name in USUAL:
        library.mallopt(name, KEPT)
    try:
        yield
    finally:
        for name, size in USUAL.items():
            library.mallopt(name, size)
        give_back()


@contextmanager
def threads_for(work: float) -> Iterator[None]:
    """Compute with one thread where a batch is only so many multiply-adds; 0: not known."""
    before = torch.get_num_threads()
    alone = 0 < work < SMALL_WORK and before > 1
    if alone:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if alone:
            torch.set_num_threads(before)


class EpochOrder(SeedableRandomSampler):
    """accelerate's order of an epoch in 8 bytes an image; as a list of Python's numbers, 40."""

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch + self.initial_seed)
        count = len(self.data_source)
        order = torch.from_numpy(zeros(count, np.int64))
        torch.randperm(count, generator=generator, out=order)
        for some in order.split(AT_ONCE):
            yield from some.tolist()
        self.set_epoch(self.epoch + 1)


def light_order(loader: Any) -> None:
    """Let a prepared loader take the same images in the same order, in less memory."""
    sampler = loader.get_sampler() if hasattr(loader, "get_sampler") else None
    if type(sampler) is SeedableRandomSampler and not sampler.replacement:
        loader.set_sampler(EpochOrder(sampler.data_source, data_seed=sampler.initial_seed))
