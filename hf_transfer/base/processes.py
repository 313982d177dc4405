"""The processes that train together: who this one is, and what all of them agree on.

With one process every function here returns at once. What is agreed on goes through a CPU group
of its own, so that no accelerator has to be waited for.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hf_transfer.base import launch
from hf_transfer.base.errors import UserError

PEER_SECONDS = 600  # after which a process that does not answer is lost; they wait for each other


if TYPE_CHECKING:
    import torch

MEET_SECONDS = 1.0  # far below what a process that does not answer is given


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as this one sees them."""

    count: int = 1
    rank: int = 0
    group: Any = None  # of gloo, for numbers that live on the CPU
    hosts: tuple[str, ...] = ()  # the machine of each process, by rank

    @classmethod
    def here(cls, timeout_seconds: float = 1800) -> Processes:
        """Return the processes that the launcher started; all of them call this together.

        Raises UserError where the launcher started more than have found each other, or fewer
        than it was asked for. After `timeout_seconds` one that does not answer is lost.
        """
        import torch.distributed as dist

        launch.check()
        joined = dist.is_available() and dist.is_initialized()
        count = dist.get_world_size() if joined else 1
        started = launch.count()
        if started != count:
            raise UserError(
                f"the launcher started {started} processes and {count} found each other; start "
                "with torchrun, or accelerate launch --config_file (recipes/accelerate)"
            )
        if count == 1:
            return cls()
        own = dist.group.WORLD if dist.get_backend() == "gloo" else _gloo(timeout_seconds)
        alone = cls(count, dist.get_rank(), own)
        return dataclasses.replace(alone, hosts=tuple(alone.all(socket.gethostname())))

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def most(self, value: int) -> int:
        """Return the largest of the values that the processes give."""
        if self.count == 1:
            return value
        import torch
        import torch.distributed as dist

        found = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return int(found)

    def wait(self) -> None:
        """Return once all processes have called this."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier(group=self.group)

    def all(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        everyone: list[Any] = [None] * self.count
        dist.all_gather_object(everyone, value, group=self.group)
        return everyone

    def take_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every process the first one's values of these tensors, in place."""
        if self.count > 1:
            import torch.distributed as dist

            for tensor in tensors:
                dist.broadcast(tensor.data, src=0)


class Meetings:
    """Signs of life among processes that each work on their own share.

    A process calls `working` between its steps, and `end` when its share is done. So none waits for
    a sign longer than a second and a step, however long another's share takes.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes, self._last = processes, time.monotonic()

    def working(self) -> None:
        """Meet the others, if a second has passed since the last time."""
        if self.processes.count > 1 and time.monotonic() - self._last > MEET_SECONDS:
            self.processes.all(True)
            self._last = time.monotonic()

    def end(self) -> None:
        """Return once no process is at work any more."""
        while any(self.processes.all(False)):
            pass


def _gloo(timeout_seconds: float) -> Any:
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))


def meet(timeout_seconds: float) -> None:
    """Join the processes on CPUs; TrainingArguments, with use_cpu, would pass no timeout on."""
    import torch.distributed as dist

    if launch.count() > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_seconds))


def leave() -> None:
    """Leave the other processes, at the very end: a wrapper that outlives this aborts."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def peer_seconds() -> int:
    """Return after how many seconds a process that does not answer is lost.

    Raises UserError for a HF_TRANSFER_PEER_SECONDS that is no such number.
    """
    text = os.environ.get("HF_TRANSFER_PEER_SECONDS", str(PEER_SECONDS))
    if not text.isdecimal() or int(text) < 1:
        raise UserError(
            f"HF_TRANSFER_PEER_SECONDS is {text!r}; set it to whole seconds, such as {PEER_SECONDS}"
        )
    return int(text)
