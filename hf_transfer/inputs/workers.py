"""Data workers that end with the process that they work for.

torch's workers watch their parent, but they look up who that is only after they have begun. Where
the parent is killed before, they take the process that adopts them for it, and never end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import context, current_process
from typing import Any

from torch.utils.data import DataLoader


class Attached:
    """A DataLoader's `worker_init_fn`: `first`, if any, then ends a worker that is alone by now."""

    def __init__(self, first: Callable[[int], Any] | None = None) -> None:
        self.first, self.parent = first, os.getpid()

    def __call__(self, worker: int) -> None:
        """Begin a worker, with its number."""
        if self.first is not None:
            self.first(worker)
        # The parent of others is a server that ends with the process that started it.
        served = isinstance(current_process(), getattr(context, "ForkServerProcess", ()))
        if not served and os.getppid() != self.parent:
            os._exit(1)


def attached(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return the loader, whose workers end with this process."""
    if loader.num_workers:
        loader.worker_init_fn = Attached(loader.worker_init_fn)
    return loader
