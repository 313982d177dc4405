"""Bytes, operations and seconds as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_bytes(count: float) -> str:
    """Return bytes as a person reads them, such as 94 MB."""
    return _scaled(count, 1e6, ("MB", "GB", "TB"))


def format_operations(count: float) -> str:
    """Return a number of operations as a person reads it, such as 28 GFLOP."""
    return _scaled(count, 1e9, ("GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def _scaled(count: float, unit: float, names: Sequence[str]) -> str:
    value, i = count / unit, 0
    while value >= 1000 and i + 1 < len(names):
        value, i = value / 1000, i + 1
    return f"{value:.0f} {names[i]}" if value >= 10 else f"{value:.1f} {names[i]}"


def format_seconds(seconds: float | None) -> str:
    """Return an estimated time as a person reads it, such as about 3 min."""
    if seconds is None:
        return "not known"
    if seconds < 1:
        return "under 1 s"
    if seconds < 100:
        return f"about {seconds:.0f} s"
    if seconds < 6000:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.{'0f' if seconds > 36000 else '1f'}} h"


def format_share(share: float) -> str:
    """Return a share as percent, with more digits the smaller it is."""
    if 0 < share < 5e-5:
        return "<0.01%"
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.01 else f"{share:.2%}"


def format_range(values: Iterable[float]) -> str:
    """Return the smallest and the largest value, as one where they look the same; "" of none."""
    found = list(values)
    ends = [f"{value:.2g}" for value in (min(found), max(found))] if found else []
    return " to ".join(dict.fromkeys(ends))
