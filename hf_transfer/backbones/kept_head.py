"""A checkpoint's own head that stays: its labels are matched with the data's by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import torch
from torch import nn

from hf_transfer.backbones.blueprint import Blueprint
from hf_transfer.backbones.building import own_labels
from hf_transfer.base.boundary import printable
from hf_transfer.base.download import BackboneError

DROP = "drop head.keep (keep_head) for a new one"


def labels_of_head(blueprint: Blueprint) -> tuple[str, ...]:
    """Return the names of the checkpoint's own labels. Raises BackboneError without a head."""
    labels = own_labels(blueprint)
    if not labels:
        raise BackboneError(f"{blueprint.origin} has no head of its own; give labels")
    return labels


def rows_of(blueprint: Blueprint, labels: Sequence[str]) -> list[int]:
    """Return the row of the checkpoint's head for each of `labels`.

    Raises BackboneError unless both have the same names: rows are never matched by position.
    """
    own, place = labels_of_head(blueprint), blueprint.origin
    if tuple(labels) == own:
        return list(range(len(own)))
    if len(own) != len(labels):
        raise BackboneError(
            f"the head of {place} is for {len(own)} labels, not {len(labels)}; {DROP}"
        )
    missing = sorted(set(labels) - set(own))
    if missing:
        raise BackboneError(
            f"the head of {place} is for other labels: {_quoted(missing[0])} is not among them "
            f"(they are {', '.join(map(_quoted, own[:3]))}, …); name your labels as it does, or "
            f"{DROP}"
        )
    twice = next((label for label, count in Counter(own).items() if count > 1), None)
    if twice is not None:
        raise BackboneError(
            f"the head of {place} has several labels called {_quoted(twice)}, so names do not tell "
            f"which is which; {DROP}"
        )
    return [own.index(label) for label in labels]


def _quoted(label: str) -> str:
    return f"'{printable(label)}'"


@torch.no_grad()
def keep_head(
    blueprint: Blueprint,
    donor: nn.Module,
    lacking: Collection[str],
    head: Sequence[str],
    labels: Sequence[str],
) -> None:
    """Bring the checkpoint's own head into the order of `labels`.

    `lacking` names what the checkpoint did not have. Raises BackboneError where it has no head, or
    one for other labels.
    """
    given = dict(donor.named_parameters())
    if not all(name in given and name not in lacking for name in head):
        raise BackboneError(
            f"{blueprint.origin} has no head to keep; its head for {len(labels)} labels is new"
        )
    rows = rows_of(blueprint, labels)
    for name in head:
        if len(given[name]) != len(rows):
            raise BackboneError(
                f"the head of {blueprint.origin} is for {len(given[name])} labels, not {len(rows)}"
            )
        given[name].copy_(given[name][rows])
