"""What a step costs besides its arithmetic, skipped where that changes nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.nn.parallel import DistributedDataParallel

# accelerate asks twice in every step whether this package is there, and has the disk searched for
# it: a third of a head's step.
ASKED = "lomo_optim"
AT_ONCE = 4096  # places that are Python's numbers at a time


@contextmanager
def light_steps() -> Iterator[None]:
    """Until the block ends, remember the answers to what the libraries ask in every step."""
    absent = ASKED not in sys.modules and find_spec(ASKED) is None
    if absent:
        sys.modules[ASKED] = None  # Python's word for 'not there'
    try:
        yield
    finally:
        if absent:
            sys.modules.pop(ASKED, None)


class EpochOrder(SeedableRandomSampler):
    """accelerate's order of an epoch in 8 bytes an image; as a list of Python's numbers, 40."""

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch + self.initial_seed)
        count = len(self.data_source)
        order = torch.randperm(count, generator=generator)
        for some in order.split(AT_ONCE):
            yield from some.tolist()
        self.set_epoch(self.epoch + 1)


def light_order(loader: Any) -> None:
    """Make a prepared loader draw the same images in the same order with less memory."""
    sampler = loader.get_sampler() if hasattr(loader, "get_sampler") else None
    if type(sampler) is SeedableRandomSampler and not sampler.replacement:
        loader.set_sampler(EpochOrder(sampler.data_source, data_seed=sampler.initial_seed))


def settle_sums(wrapped: Any) -> None:
    """Fix the order in which gradients are summed, before the first step that trains.

    DistributedDataParallel rearranges its buckets after its first backward pass, and with three or
    more processes a sum depends in its last bit on the place in a bucket: the first step after
    resuming would differ from that of the unbroken run. Here that first pass is made before
    training and changes no weights.
    """
    wrapped = getattr(wrapped, "_orig_mod", wrapped)
    if not isinstance(wrapped, DistributedDataParallel):
        return
    wrapped.reducer.prepare_for_forward()
    wrapped.reducer.prepare_for_backward([])
    total = torch.zeros((), device=next(wrapped.parameters()).device)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            total = total + parameter.sum()  # the last is reached first: as in a network
    total.backward()
    wrapped.zero_grad(set_to_none=True)
