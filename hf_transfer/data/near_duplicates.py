"""Pictures that are nearly the same: saved again, resized, brightened, or frames of one scene.

Each decoded picture has a perceptual hash: the signs of its slow waves, 255 bits (the DCT hash of
imagehash and pHash, with 16 by 16 waves). Among 2,000 photos, radiographs and cells at 96 px the
closest two that differ, photos of the same blood, were 26 bits apart; the same picture as JPEG of
quality 40, halved, blurred or gray was at most 20 away, and brightened by a quarter in 96 of 100.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from hf_transfer.data.findings import Finding, finding
from hf_transfer.data.scan import Scan

WAVES = 16
HASH_BYTES = WAVES * WAVES // 8
NEAR = 20  # bits of 255 that differ at most
FLAT = 1.0  # gray levels: pictures whose waves are all weaker have no hash
MOST_COMPARED = 20_000  # pictures of which every pair is looked at
AT_ONCE = 1024
BAND = 4  # bytes that are equal in pictures that are compared, where there are more
NAMED = 3  # pairs that a finding names


@functools.cache
def _waves(side: int) -> np.ndarray:
    steps = np.pi * (2 * np.arange(side) + 1) / (2 * side)
    return (np.cos(np.arange(WAVES)[:, None] * steps) / side).astype(np.float32)


def picture_hashes(pixels: np.ndarray) -> np.ndarray:
    """Return the hashes of decoded pixels uint8 (B, S, S, C): uint8 (B, HASH_BYTES), zeros for a
    flat picture."""
    channels, waves = pixels.shape[3], _waves(pixels.shape[1])
    weights = (0.299, 0.587, 0.114) if channels == 3 else np.full(channels, 1 / channels)
    gray = pixels.astype(np.float32) @ np.array(weights, np.float32)
    found = (waves @ gray @ waves.T).reshape(len(pixels), -1)
    found[:, 0] = np.median(found[:, 1:], axis=1)  # the brightness says nothing
    found -= found[:, :1]
    found[np.abs(found).max(axis=1) < FLAT / 4] = 0
    return np.packbits(found > 0, axis=1)


def near_pairs(hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the pairs of rows, the smaller first, whose hashes (N, HASH_BYTES) nearly agree.

    Beyond MOST_COMPARED rows only those are compared that agree in a whole part of the hash, as
    nearly all pictures that were saved again or resized do. Rows of zeros have no hash.
    """
    rows = np.flatnonzero(hashes.any(axis=1))
    if len(rows) <= MOST_COMPARED:
        yield from _close(hashes, rows)
        return
    seen: set[tuple[int, int]] = set()
    for start in range(0, HASH_BYTES, BAND):
        keys = np.ascontiguousarray(hashes[rows, start : start + BAND]).view(np.uint32)[:, 0]
        order = np.argsort(keys, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            if 1 < len(members) <= AT_ONCE:
                new = set(_close(hashes, np.sort(rows[members]))) - seen
                seen |= new
                yield from sorted(new)


def _close(hashes: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, int]]:
    signs = np.unpackbits(hashes[rows], axis=1).astype(np.float32) * 2 - 1
    least = signs.shape[1] - 2 * NEAR
    for first in range(0, len(rows), AT_ONCE):
        some = signs[first : first + AT_ONCE] @ signs[first:].T
        for a, b in zip(*np.nonzero(np.triu(some, 1) >= least), strict=True):
            yield int(rows[first + a]), int(rows[first + b])


def near_duplicates(found: Scan, hashes: np.ndarray, digests: np.ndarray) -> list[Finding]:
    """Return pictures that are nearly another's, those in two splits or with two labels first.

    Pictures with the same pixels (`digests`, a row each) are told elsewhere. All are kept.
    """
    kinds: dict[str, list[tuple[int, int]]] = {kind: [] for kind in KINDS}
    for a, b in near_pairs(hashes):
        if (digests[a] == digests[b]).all():
            continue
        if found.splits[a] != found.splits[b]:
            kinds["near-duplicates-across-splits"].append((a, b))
        elif found.targets[a] != found.targets[b]:
            kinds["near-duplicates-two-labels"].append((a, b))
        else:
            kinds["near-duplicates"].append((a, b))
    return [_finding(found, kind, pairs) for kind, pairs in kinds.items() if pairs]


KINDS = {
    "near-duplicates-across-splits": "nearly the same picture is in another split, so scores may "
    "be too high; remove one, or keep them together with data.group",
    "near-duplicates-two-labels": "nearly the same picture has another label",
    "near-duplicates": "nearly the same picture several times in a split",
}


def _finding(found: Scan, kind: str, pairs: list[tuple[int, int]]) -> Finding:
    rows = dict.fromkeys(row for pair in pairs for row in pair)
    few = "; ".join(f"{found.files[a]} and {found.files[b]}" for a, b in pairs[:NAMED])
    more = "; …" if len(pairs) > NAMED else ""
    return finding(kind, [found.files[row] for row in rows], f"kept: {KINDS[kind]} ({few}{more})")
