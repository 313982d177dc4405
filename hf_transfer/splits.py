"""Splits: which images train and which judge; a pure function of names, targets and seed."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Strata = Mapping[int, Any] | Sequence[Any]  # for each row the stratum from which shares are drawn
TENTHS = 10


def draw_order(names: Sequence[str], seed: int) -> np.ndarray:
    """Return what to sort rows by, uint64: the same names and seed give the same order anywhere."""
    texts = (f"{seed}\0{name}".encode(errors="surrogateescape") for name in names)
    digests = (hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    whole = (int.from_bytes(digest, "big") for digest in digests)
    return np.fromiter(whole, np.uint64, len(names))


def by_strata(
    rows: Sequence[int] | np.ndarray, strata: Strata, order: np.ndarray, shares: Mapping[str, float]
) -> dict[int, str]:
    """Return the split of the rows that are drawn: of every stratum each split gets its share, at
    least one row, and one at least stays."""
    members: dict[Any, array[int]] = {}
    for row in rows:
        members.setdefault(strata[row], array("q")).append(row)
    drawn: dict[int, str] = {}
    for found in members.values():
        mine = np.frombuffer(found, np.int64)
        mine = mine[np.lexsort((mine, order[mine]))]
        start = 0
        for split, share in shares.items():
            take = max(0, min(max(1, round(len(mine) * share)), len(mine) - start - 1))
            drawn |= dict.fromkeys(mine[start : start + take].tolist(), split)
            start += take
    return drawn


def tenths(rows: Sequence[int] | np.ndarray, targets: Sequence[Any]) -> dict[int, int]:
    """Return for each row in which tenth of the rows it lies, by the first of its numbers."""
    ranked = sorted(rows, key=lambda row: (targets[row][0], row))
    return {row: place * TENTHS // len(ranked) for place, row in enumerate(ranked)}


def iterative(
    rows: Sequence[int] | np.ndarray,
    targets: Sequence[Any],
    order: np.ndarray,
    shares: Mapping[str, float],
) -> dict[int, str]:
    """Return the split of the rows that are drawn, so that every label has its share in each, as
    nearly as whole images allow: of few images a small share may be none.

    The rarest label is dealt out first, each image to the split that lacks it most. Source:
    iterative stratification, Sechidis et al. 2011, doi 10.1007/978-3-642-23808-6_10.
    """
    whole = {"train": 1 - sum(shares.values()), **shares}
    left = sorted(rows, key=lambda row: (order[row], row))
    counts: dict[int, int] = {}
    for row in left:
        for label in targets[row]:
            counts[label] = counts.get(label, 0) + 1
    lacks = {
        split: {label: share * count for label, count in counts.items()}
        for split, share in whole.items()
    }
    room = {split: share * len(left) for split, share in whole.items()}
    drawn: dict[int, str] = {}
    while left:
        there = [(count, label) for label, count in counts.items() if count]
        rarest = min(there)[1] if there else -1
        dealt = [row for row in left if rarest in targets[row]] if rarest >= 0 else left
        for row in dealt:
            split = max(whole, key=lambda at: (lacks[at].get(rarest, 0.0), room[at]))
            drawn[row] = split
            room[split] -= 1
            for label in targets[row]:
                lacks[split][label] -= 1
                counts[label] -= 1
        left = [row for row in left if row not in drawn]
    return {row: split for row, split in drawn.items() if split != "train"}
