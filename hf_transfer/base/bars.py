"""Progress bars for what takes more than two seconds; none where the output is no terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from tqdm.auto import tqdm

from hf_transfer.base import launch

DELAY_SECONDS = 2.0
Item = TypeVar("Item")


def visible() -> bool:
    """Return whether bars are shown: on a terminal, by the first process."""
    return sys.stderr is not None and sys.stderr.isatty() and launch.is_main()


def bar(total: int | None, what: str, unit: str = "images") -> tqdm:  # type: ignore[type-arg]
    """Return a bar for `total` units of work; `update` it and `close` it, or use it in a `with`."""
    return tqdm(
        total=total,
        desc=what,
        unit=f" {unit}",
        delay=DELAY_SECONDS,
        leave=False,
        dynamic_ncols=True,
        disable=not visible(),
    )


def shown(items: Iterable[Item], what: str, unit: str = "images") -> Iterator[Item]:
    """Yield the items, with a bar that counts them."""
    total = len(items) if isinstance(items, Sized) else None
    with bar(total, what, unit) as progress:
        for item in items:
            yield item
            progress.update()


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep the progress bars of `datasets` off standard error, and what it logs of errors, which
    are raised as well."""
    import datasets

    before, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not before:
            datasets.enable_progress_bars()
