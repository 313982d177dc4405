"""Labels that are likely wrong: what heads that never saw an image confidently say otherwise of.

Source: confident learning, Northcutt et al. 2021, arXiv:1911.00068, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_transfer.data.findings import Finding, finding

KIND = "likely-wrong-label"
AGREE = 0.8  # share of the answers at least as certain that agree with the labels
LEAST = 20  # such answers
NAMED = 3  # files that a finding tells the other label of


@dataclass(frozen=True)
class Suspect:
    """An image whose label is likely wrong: its row, its label, the likelier one, and how much
    likelier that is, 0 to 1."""

    row: int
    label: int
    likely: int
    margin: float


def suspects(
    chances: np.ndarray, labels: np.ndarray, second: np.ndarray | None = None
) -> tuple[Suspect, ...]:
    """Return the images whose labels are likely wrong, the most certain first.

    `chances` (N, classes) are probabilities from heads that were fitted without the image. A label
    is doubted where another class is as likely as it is, on average, for that class's own images,
    and where answers as certain as this one mostly agree with the labels: heads that know little
    doubt nothing. With `second` (N,), classes by another method, both have to agree.
    """
    classes = chances.shape[1]
    own = chances[np.arange(len(labels)), labels]
    usual = np.array(
        [own[labels == c].mean() if (labels == c).any() else np.inf for c in range(classes)]
    )
    sure = np.where(chances >= usual, chances, 0.0)
    likely = sure.argmax(1)
    doubted = (
        (sure.max(1) > 0) & (likely != labels) & (chances[np.arange(len(labels)), likely] > own)
    )
    doubted &= chances.max(1) >= _certain(chances, labels)
    if second is not None:
        doubted &= second == likely
    rows = np.flatnonzero(doubted)
    margins = chances[rows, likely[rows]] - own[rows]
    order = np.argsort(-margins, kind="stable")
    return tuple(
        Suspect(int(rows[i]), int(labels[rows[i]]), int(likely[rows[i]]), float(margins[i]))
        for i in order
    )


def _certain(chances: np.ndarray, labels: np.ndarray) -> float:
    """Return the probability from which answers agree with the labels in AGREE of the images."""
    top = chances.max(1)
    order = np.argsort(-top, kind="stable")
    agree = np.cumsum(chances.argmax(1)[order] == labels[order]) / np.arange(1, len(order) + 1)
    places = np.flatnonzero(agree >= AGREE)
    places = places[places >= min(LEAST, len(order)) - 1]  # a few that agree say nothing
    return float(top[order[places[-1]]]) if len(places) else np.inf


def label_findings(
    found: Sequence[Suspect], files: Sequence[str], names: Sequence[str]
) -> tuple[Finding, ...]:
    """Return the finding that lists these images, or none; they are kept."""
    if not found:
        return ()
    few = "; ".join(
        f"{files[one.row]} looks like {names[one.likely]}" for one in found[:NAMED] if files
    )
    done = "kept: heads that never saw them say another label; look at them"
    done += f" ({few}{'; …' if len(found) > NAMED else ''})" if few else ""
    return (finding(KIND, [files[one.row] for one in found] if files else [], done),)
