"""Splits: which images train and which judge; a pure function of names, targets and seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

TENTHS = 10


def draw_order(names: Sequence[str], seed: int, free: bool = False) -> np.ndarray:
    """Return what to sort rows by, uint64: the same names and seed give the same order anywhere.

    Images without labels (`free`) have an order of their own: drawn by that of labelled ones, all
    that validate a pretext would be among those that validate its target, and be left out.
    """
    drawn = f"{seed} free" if free else str(seed)
    texts = (f"{drawn}\0{name}".encode(errors="surrogateescape") for name in names)
    digests = (hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    whole = (int.from_bytes(digest, "big") for digest in digests)
    return np.fromiter(whole, np.uint64, len(names))


def grouped(codes: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of each code that they have, in order; codes (N,) are whole numbers."""
    mine = codes[rows]
    order = np.argsort(mine, kind="stable")
    ends = np.flatnonzero(np.diff(mine[order])) + 1
    return iter(np.split(rows[order], ends) if len(rows) else ())


def drawn_first(rows: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return rows as they are drawn: by `draw_order`'s order."""
    return rows[np.lexsort((rows, order[rows]))]


def by_strata(
    rows: np.ndarray,
    strata: np.ndarray,
    order: np.ndarray,
    shares: Mapping[str, float],
    least: int = 1,
) -> dict[str, np.ndarray]:
    """Return the rows that are drawn for each split: of every stratum each split gets its share, at
    `least` so many rows, and as many stay. `strata` are small whole numbers, one for each image."""
    drawn: dict[str, list[np.ndarray]] = {split: [] for split in shares}
    for members in grouped(strata, rows):
        mine = drawn_first(members, order)
        start = 0
        for split, share in shares.items():
            take = max(0, min(max(least, round(len(mine) * share)), len(mine) - start - least))
            drawn[split].append(mine[start : start + take])
            start += take
    return {split: np.concatenate(parts) for split, parts in drawn.items() if parts}


def tenths(rows: np.ndarray, targets: Sequence[Any]) -> np.ndarray:
    """Return for each image, if it is one of the rows, in which tenth of them it lies, by the first
    of its numbers."""
    ranked = sorted(rows.tolist(), key=lambda row: (targets[row][0], row))
    found = np.zeros(len(targets), np.uint8)
    found[ranked] = np.arange(len(ranked)) * TENTHS // max(1, len(ranked))
    return found


def iterative(
    rows: np.ndarray,
    targets: Sequence[Any],
    order: np.ndarray,
    shares: Mapping[str, float],
    groups: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the rows that are drawn for each split, so that every label has its share in each, as
    nearly as whole images allow: of few images a small share may be none.

    `targets` are labels, several for each image; images of a group (N,) stay together. The rarest
    label is dealt out first, the largest groups that show it (by powers of two) before smaller
    ones, each to the split that lacks it most. Source: iterative stratification, Sechidis et al.
    2011, doi 10.1007/978-3-642-23808-6_10.
    """
    whole = {"train": 1 - sum(shares.values()), **shares}
    members = _members(drawn_first(rows, order), groups)
    shown = [Counter(label for row in some for label in targets[row]) for some in members]
    counts = sum(shown, Counter[int]())
    lacks = {
        split: {label: share * count for label, count in counts.items()}
        for split, share in whole.items()
    }
    room = {split: share * len(rows) for split, share in whole.items()}
    drawn: dict[str, list[int]] = {split: [] for split in whole}
    left = list(range(len(members)))
    while left:
        there = [(count, label) for label, count in counts.items() if count]
        rarest = min(there)[1] if there else -1
        dealt = [at for at in left if rarest in shown[at]] if there else left
        for at in sorted(dealt, key=lambda at: -len(members[at]).bit_length()):
            split = max(whole, key=lambda name: (lacks[name].get(rarest, 0.0), room[name]))
            drawn[split] += members[at]
            room[split] -= len(members[at])
            for label, count in shown[at].items():
                lacks[split][label] -= count
                counts[label] -= count
        gone = set(dealt)
        left = [at for at in left if at not in gone]
    return {split: np.array(drawn[split], np.int64) for split in shares}


def parts(
    rows: np.ndarray,
    labels: np.ndarray | Sequence[Sequence[int]],
    count: int,
    order: np.ndarray,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Return in which of so many parts each of the rows is, 0..count - 1: every label has its share
    in each, as nearly as whole images allow.

    `labels` are one whole number for each image, or several; images of a group stay together. Parts
    of few images a label are as large as each other.
    """
    place: np.ndarray = np.zeros(len(order), np.int64)
    if isinstance(labels, np.ndarray) and groups is None:
        start = 0
        for members in grouped(labels, rows):
            mine = drawn_first(members, order)
            place[mine] = (np.arange(len(mine)) + start) % count
            start += len(mine)
        return np.take(place, rows)
    shown = [(label,) for label in labels.tolist()] if isinstance(labels, np.ndarray) else labels
    shares = {str(part): 1 / count for part in range(1, count)}
    for name, mine in iterative(rows, shown, order, shares, groups).items():
        place[mine] = int(name)  # what no share takes is in part 0
    return np.take(place, rows)


def _members(rows: np.ndarray, groups: np.ndarray | None) -> list[list[int]]:
    """Return the rows of each group, in the order of the first of each; without groups each row."""
    if groups is None:
        return [[row] for row in rows.tolist()]
    found: dict[int, list[int]] = {}
    for row in rows.tolist():
        found.setdefault(int(groups[row]), []).append(row)
    return list(found.values())
