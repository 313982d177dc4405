"""How well a pretext is solved: how often the network tells what was done to an image, or finds its
other picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hf_transfer.recipe.tasks import SHIFTS

AMONG = 64  # images among which a picture is to be found: a batch of an evaluation


def told_metrics(
    outputs: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str] | None = None,
    bootstrap: int = 0,
    tables: bool = True,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Return the share of images (N,) whose largest output (N, K) is the one that is right."""
    right = np.asarray(outputs).argmax(1) == np.asarray(labels)
    return {"n": len(right), "accuracy": float(right.mean())}


def found_metrics(
    outputs: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str] | None = None,
    bootstrap: int = 0,
    tables: bool = True,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Return the share of images (N,) whose second picture is the nearest to the first, by the
    cosine of their outputs (N, 2 K), among AMONG images at a time; chance is 1 / AMONG."""
    outputs = np.asarray(outputs, np.float32)
    right = []
    for start in range(0, len(outputs), AMONG):
        one, two = (_unit(part) for part in np.split(outputs[start : start + AMONG], 2, axis=1))
        right.append((one @ two.T).argmax(1) == np.arange(len(one)))
    return {"n": len(outputs), "accuracy": float(np.concatenate(right).mean())}


def nearer_metrics(
    outputs: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str] | None = None,
    bootstrap: int = 0,
    tables: bool = True,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Return the share of frames (N,) that are nearer to the next frame than to one half of all
    frames away, by the cosine of their outputs (N, 2 K); chance is one half."""
    one, two = (_unit(part) for part in np.split(np.asarray(outputs, np.float32), 2, axis=1))
    far = np.roll(two, len(two) // 2, axis=0)
    right = (one * two).sum(1) > (one * far).sum(1)
    return {"n": len(one), "accuracy": float(right.mean())}


def shift_metrics(
    outputs: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str] | None = None,
    bootstrap: int = 0,
    tables: bool = True,
    groups: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Return how often the shift (N,) between two pictures is told from the outputs of both
    (N, 2 K), the mean of both directions; chance is 1 / SHIFTS."""
    one, two = np.split(np.asarray(outputs, np.float32), 2, axis=1)
    half = one.shape[1] // 2
    told = (one[:, :half] + two[:, half:]).reshape(len(one), 2, SHIFTS).argmax(2)
    true = np.stack(np.divmod(np.asarray(labels), SHIFTS), 1)
    return {"n": len(one), "accuracy": float((told == true).mean())}


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    return unit
