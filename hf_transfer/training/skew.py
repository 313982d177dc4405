"""What makes up for uneven classes: weights, shares of the classes, and the order of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from hf_transfer.base.boundary import printable
from hf_transfer.base.errors import UserError
from hf_transfer.base.nearest import nearest
from hf_transfer.training.labels import COLUMNS
from hf_transfer.training.loss import Objective
from hf_transfer.training.phase_state import PhaseState

LOSSES = ("cross_entropy", "balanced", "focal", "logit_adjusted", "squared_error", "pretext")
REMEDY = "make the training set with load_data, or give class_weights as one number a class"


def objective(
    loss: str, weights: Any, task: str, labels: Sequence[str], images: Any, own_loss: bool
) -> Objective:
    """Return what a Trainer minimises, by the words of a recipe; `images` is the training set.

    Raises UserError for a loss that the task or the set does not have, or beside a user's own.
    """
    if loss not in LOSSES:
        raise UserError(
            f"there is no loss {loss!r}{nearest(loss, LOSSES)}; there are {', '.join(LOSSES)}"
        )
    given = [] if loss in ("cross_entropy", "squared_error", "pretext") else [f"loss: {loss}"]
    given += [] if weights is None else ["class_weights"]
    if own_loss and given:
        raise UserError(
            f"{' and '.join(given)} would change the loss, which is your own; remove one of them"
        )
    if loss == "squared_error" and task != "regression":
        raise UserError(f"loss: {loss} cannot be combined with task: {task}; remove it")
    if (loss == "logit_adjusted" and task != "classification") or (given and task == "regression"):
        raise UserError(f"{given[0]} cannot be combined with task: {task}; remove it")
    if loss in ("balanced", "logit_adjusted") and weights is not None:
        raise UserError(f"class_weights cannot be combined with loss: {loss}; remove one of them")
    weights = "balanced" if loss == "balanced" else weights
    prior = None
    if loss == "logit_adjusted":
        counts = torch.from_numpy(class_counts(images, len(labels), f"loss: {loss}")).clamp(min=1)
        prior = (counts / counts.sum()).log().float()
    made = None if weights is None else class_weights(weights, labels, images)
    return Objective(task, made, loss == "focal", prior)


def class_weights(given: Any, labels: Sequence[str], images: Any) -> torch.Tensor:
    """Return class weights (C,), float32: a number for each class, {label: number} with 1 for the
    others, or by the counts of the training images: "balanced" or "sqrt", its square root.

    Balanced are total / (classes x count), so that all classes count the same. Of several labels:
    images without a label / images with it, for where it is there.
    """
    if isinstance(given, str):
        if given not in ("balanced", "sqrt"):
            raise UserError(
                f"class_weights: {given!r} is neither balanced nor sqrt; or give one number a class"
            )
        counts = class_counts(images, len(labels), f"class_weights: {given}").clip(1)
        if _several(images):
            weights = (len(images) - counts).clip(1) / counts
        else:
            weights = counts.sum() / (len(counts) * counts)
        return torch.from_numpy(np.sqrt(weights) if given == "sqrt" else weights).float()
    if isinstance(given, Mapping):
        unknown = next((name for name in given if name not in labels), None)
        if unknown is not None:
            near = (
                nearest(str(unknown), labels) or f"; there are {printable(', '.join(labels[:9]))}"
            )
            raise UserError(f"class_weights: there is no label {printable(str(unknown))!r}{near}")
        given = [given.get(label, 1.0) for label in labels]
    try:
        found = torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"class_weights are of type {type(given).__name__}; pass one number a class"
        ) from error
    count = len(labels) or found.numel()
    if found.shape != (count,) or not bool((found.isfinite() & (found >= 0)).all()):
        raise UserError(
            f"class_weights must be {count} numbers of at least 0, one for each label in the "
            f"model's order, got {str(given)[:60]}"
        )
    return found


def labels_of(images: Any) -> np.ndarray | None:
    """Return the labels of a set, (N,) or (N, L), where they can be had without its images."""
    found = getattr(images, "labels", None)
    if isinstance(found, np.ndarray | torch.Tensor):
        return np.asarray(found)
    columns = getattr(images, "column_names", None) or ()
    name = next((name for name in COLUMNS if name in columns), None)
    return None if name is None else np.asarray(images[name])


def known_labels(images: Any, what: str) -> np.ndarray:
    """Return the labels of a set, or raise UserError that says what needs them."""
    labels = labels_of(images)
    if labels is None:
        raise UserError(f"{what} needs a training set whose labels can be counted; {REMEDY}")
    return labels


def class_counts(images: Any, classes: int, what: str) -> np.ndarray:
    """Return the images of each class (C,), float64; of several labels those that have it."""
    labels = known_labels(images, what)
    if labels.ndim == 2:
        return labels.sum(axis=0).astype(np.float64)
    return np.bincount(labels.astype(np.int64), minlength=classes).astype(np.float64)


def _several(images: Any) -> bool:
    labels = labels_of(images)
    return labels is not None and labels.ndim == 2


def order(state: PhaseState | None, images: Any, usual: Any) -> Any:
    """Return the sampler of a phase: the `usual` one unless the phase asks for balanced classes."""
    if state is None or state.phase.spec.sampler != "balanced":
        return usual
    return BalancedOrder(known_labels(images, "sampler: balanced"), state.args.seed)


class BalancedOrder(Sampler[int]):
    """As many images of each class in an epoch, a pure function of (seed, epoch).

    An epoch is as long as the set. Of a class with more images than its share others come in the
    next epoch; those of a class with fewer come several times, each as often as the next.
    Source: class-balanced sampling, arXiv:1910.09217, section 3 (q = 0).
    """

    def __init__(self, labels: np.ndarray, seed: int) -> None:
        self.seed, self.epoch, self.count = seed, 0, len(labels)
        self.rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        classes = len(self.rows)
        first = random.permutation(classes)  # of which one image more is taken, where it matters
        drawn = []
        for place, number in enumerate(first):
            wanted = self.count // classes + (place < self.count % classes)
            rows = self.rows[number]
            rounds = [random.permutation(rows) for _ in range(-(-wanted // len(rows)))]
            drawn.append(np.concatenate([*rounds, rows[:0]])[:wanted])
        yield from random.permutation(np.concatenate(drawn)).tolist()
        self.epoch += 1
