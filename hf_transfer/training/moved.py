"""What training moved: by group the distance of the weights from their start, and how much what
they make of images changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from hf_transfer.backbones.access import bare_names, evaluating
from hf_transfer.base.launch import shards
from hf_transfer.data.image_set import ImageSet
from hf_transfer.inputs.arriving import arriving, at_once, input_of
from hf_transfer.results.report import PhaseReport
from hf_transfer.results.words import JsonDict

IMAGES = 256  # whose representations are compared
LARGEST_BYTES = 2**31  # of weights, beyond which the start is not loaded once more


def moved_of(
    model: PreTrainedModel,
    phases: Sequence[PhaseReport],
    images: ImageSet,
    start: Callable[[], PreTrainedModel],
) -> list[JsonDict]:
    """Return for each group below the head {"group", "weights", "representation"}.

    `weights` is the norm of their change over their norm at the start; `representation` 1 less the
    linear CKA (`cka`) of what arrives at the next group, before and after, on IMAGES images;
    0 is no change. Empty where nothing below the head trained, or the start, which
    `start` loads, would take too much memory.
    """
    groups = model.backbone.groups
    below = {group.name for group in groups.groups if groups.head.isdisjoint(group.parameters)}
    trained = {name for phase in phases for name in phase.groups}
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if not trained & below or shards() or size > LARGEST_BYTES:
        return []
    first = start().to(model.device)
    apart = distances(first, model)
    some = images.subset(_some(images))
    before, after = _representations(first, some), _representations(model, some)
    names = list(groups.names)
    rows = []
    for name in names:
        if name in below:
            following = names[names.index(name) + 1]
            known = following in before and following in after
            change = 1 - cka(before[following], after[following]) if known else None
            rows.append({"group": name, "weights": apart[name], "representation": change})
    return rows


def distances(first: nn.Module, last: nn.Module) -> dict[str, float]:
    """Return for each group the norm of the change of its weights over their norm in `first`."""
    backbone = last.backbone
    before, after = bare_names(first, backbone.prefix), bare_names(last, backbone.prefix)
    found = {}
    for group in backbone.groups.groups:
        size = change = 0.0
        for name in group.parameters:
            if name in before and before[name].shape == after[name].shape:
                old = before[name].detach().double()
                size += float(old.pow(2).sum())
                change += float((after[name].detach().double() - old).pow(2).sum())
        found[group.name] = (change / size) ** 0.5 if size else 0.0
    return found


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear centred kernel alignment of representations (N, D) and (N, E), 0 to 1.

    Source: Kornblith et al. 2019, arXiv:1905.00414, section 3.
    """
    x, y = (np.asarray(one, np.float64) - np.mean(one, axis=0, dtype=np.float64) for one in (x, y))
    cross = float(np.linalg.norm(x.T @ y) ** 2)
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return min(1.0, cross / float(own)) if own else 1.0


def figures(rows: Sequence[JsonDict]) -> tuple[JsonDict, ...]:
    """Return the report's figures of what moved, or none."""
    if not rows:
        return ()
    names = [row["group"] for row in rows]
    made = []
    for key, title, note in (
        (
            "weights",
            "How far the weights moved",
            "Size of the change over the size at the start (Frobenius norms); 0 is no change.",
        ),
        (
            "representation",
            "How much the representation changed",
            "1 less the linear CKA (Kornblith et al. 2019) of what leaves each group, before and "
            "after training, on the same images; 0 is no change.",
        ),
    ):
        points = [[float(i), row[key]] for i, row in enumerate(rows) if row[key] is not None]
        line = {"name": "", "points": points}
        shown = {"title": title, "x": "group", "y": "", "note": note}
        made.append({**shown, "names": names, "lines": [line]})
    return tuple(made)


def _representations(model: PreTrainedModel, images: ImageSet) -> dict[str, np.ndarray]:
    """Return what arrives at each group, (N, D) by group."""
    parts: dict[str, list[np.ndarray]] = {}
    with evaluating(model):
        for rows in np.array_split(np.arange(len(images)), -(-len(images) // at_once(model))):
            for name, values in arriving(model, input_of(model, images, rows)).items():
                parts.setdefault(name, []).append(values.cpu().numpy())
    return {name: np.concatenate(some) for name, some in parts.items()}


def _some(images: ImageSet) -> np.ndarray:
    """Return the places of IMAGES images, evenly over the set, in which classes lie in a row."""
    count = min(IMAGES, len(images))
    return np.unique(np.linspace(0, len(images) - 1, count).astype(np.int64))
