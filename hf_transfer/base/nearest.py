"""What a misspelt name may have been meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def nearest(name: str, known: Collection[str], count: int = 2) -> str:
    """Return "; nearest: a, b" for the known names that are similar to this one, or nothing.

    Parts of a known name count as well: `lp` is near `lp_ft`.
    """
    found = similar(name, known, count)
    return f"; nearest: {', '.join(found)}" if found else ""


def similar(name: str, known: Collection[str], count: int = 1, cutoff: float = 0.5) -> list[str]:
    """Return at most `count` known names that are similar to this one in either case, or begin
    with it, the most similar first; `cutoff` is 0..1, 1 for equal names."""
    low = {each.lower(): each for each in known}
    found = difflib.get_close_matches(name.lower(), low, n=count, cutoff=cutoff)
    if name:
        found += [each for each in low if each.startswith(name.lower()) and each not in found]
    return [low[each] for each in found[:count]]
