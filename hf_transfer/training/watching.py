"""What one watches while a pretext trains: whether features collapse, and what they are worth for
the target, which a linear probe of its labelled images tells."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from hf_transfer.data.held_out import HeldOut
from hf_transfer.data.image_set import ImageData, ImageSet, held_out, load_data
from hf_transfer.inputs.head_features import head_features
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import PROBED, PROBES, TASKS
from hf_transfer.results.metrics.by_name import measure
from hf_transfer.training.solver import standard_scale

logger = logging.getLogger(__name__)

BATCH = 64
WATCHED = 512  # images without labels whose features are looked at, at most
LEAST = 32  # of them that validate; where fewer do, those that train are looked at
STRENGTHS = 10.0 ** np.arange(-3, 4)  # of the probe's regularisation, times the number of images
FLAT = 2.0  # effective rank below which features are a point or a line
LOST = 0.1  # share of the rank or the spread of the beginning, below which features collapse


class Watch:
    """Metrics of a network's features, for an evaluation: `rank`, `spread`, and `probe_…`.

    The rank is the effective one, exp of the entropy of the singular values (RankMe, Garrido et al.
    2023, arXiv:2210.02885): 1 where all features are one number. The spread is the standard
    deviation of features of length 1, times the root of their number: 1 where they fill the sphere,
    0 where all images look alike. The probe is a ridge regression on the target's training images,
    its strength chosen by leaving one out, measured on the target's validation images.
    """

    def __init__(
        self, model: PreTrainedModel, images: ImageSet, labelled: ImageData | None = None
    ) -> None:
        self.model, self.labelled = model, labelled
        self.images = _some(images, WATCHED)
        self.before: dict[str, float] = {}
        self.now: dict[str, float] = {}

    def __call__(self, outputs: Any = None, labels: Any = None) -> dict[str, float]:
        """Return the metrics of the network as it is; the first call is the beginning."""
        features = self._features(self.images)
        self.now = {"rank": effective_rank(features), "spread": spread(features)}
        if self.labelled is not None:
            self.now[PROBES[self.labelled.task]] = self._probed(self.labelled)
        if not self.before:
            self.before = self.now
        if self.collapsed:
            logger.warning("%s", self.collapsed)
        return self.now

    @property
    def collapsed(self) -> str | None:
        """What to know of features that have collapsed; None while they have not."""
        rank, wide = self.now.get("rank", 0.0), self.now.get("spread", 0.0)
        lost = any(self.now[key] < LOST * self.before[key] for key in ("rank", "spread"))
        if not lost and (rank >= FLAT or self.before["rank"] < FLAT):
            return None
        return (
            f"the features collapse: their effective rank is {rank:.1f} (it was "
            f"{self.before['rank']:.1f}), their spread {wide:.3f} ({self.before['spread']:.3f}); "
            "take a smaller rate, larger batches or another pretext"
        )

    def _features(self, images: ImageSet) -> np.ndarray:
        rows = range(0, len(images), BATCH)
        parts = [images.__getitems__(range(r, min(r + BATCH, len(images)))) for r in rows]
        return np.concatenate([head_features(self.model, part["pixels"]) for part in parts])

    def _probed(self, labelled: ImageData) -> float:
        train, judging = (_some(each, PROBED) for each in (labelled.train, labelled.validation))
        known, new = self._features(train), self._features(judging)
        targets = train.labels
        if targets.ndim == 1:
            targets = np.eye(len(labelled.labels), dtype=np.float32)[targets]
        outputs = ridge(known, targets, new)
        found = measure(
            labelled.task, outputs, judging.labels, scale=labelled.scale, bootstrap=0, tables=False
        )
        value = found[TASKS[labelled.task].headline]
        return float("nan") if value is None else float(value)


def watched(
    model: PreTrainedModel, data: ImageData, labelled: ImageData | None
) -> tuple[Watch, ...]:
    """Return what watches a pretext; nothing for another task."""
    if not TASKS[data.task].is_pretext:
        return ()
    images = data.validation if len(data.validation) >= LEAST else data.train
    return (Watch(model, images, labelled),)


def concluded(metrics: dict[str, Any], watch: Sequence[Watch]) -> tuple[dict[str, Any], list[str]]:
    """Return metrics with those of the beginning under `before`, and what to know of the end."""
    for each in watch:
        metrics = {**metrics, "before": each.before}
    return metrics, [each.collapsed for each in watch if each.collapsed]


def target_of(
    recipe: Recipe, target: Recipe | None, model: PreTrainedModel, read_all: bool
) -> tuple[HeldOut | None, ImageData | None]:
    """Return what a pretext's images must not show, and the labelled images that probe it: those of
    the target, as it splits them. Nothing for other tasks, and without a target."""
    if target is None or not TASKS[recipe.task].is_pretext:
        return None, None
    own = target.data, model.backbone.image, target.seed
    return (
        held_out(*own, task=target.task),
        load_data(*own, task=target.task, read_all=read_all),
    )


def effective_rank(features: np.ndarray) -> float:
    """Return exp of the entropy of the singular values of features (N, D), centred."""
    values = np.linalg.svd(features - features.mean(0), compute_uv=False)
    shares = values / max(values.sum(), 1e-12)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def spread(features: np.ndarray) -> float:
    """Return the mean standard deviation of features (N, D) of length 1, times the root of D."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    return float(unit.std(0).mean() * np.sqrt(unit.shape[1]))


def ridge(known: np.ndarray, targets: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return what a ridge regression of targets (N, T) on features (N, D), standardised, gives for
    new ones (M, D): float (M, T). Its strength has the least squared error of leaving one out.

    Source: Golub, Heath and Wahba 1979, doi 10.1080/00401706.1979.10489751.
    """
    mean, std = known.mean(0), standard_scale(known)
    x, y = (known - mean).astype(np.float64) / std, targets - targets.mean(0)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    inner, best, found = u.T @ y, np.inf, np.zeros((x.shape[1], y.shape[1]))
    for strength in STRENGTHS * len(x):
        shrunk = s**2 / (s**2 + strength)
        left = (y - u @ (shrunk[:, None] * inner)) / (1 - (u**2 @ shrunk) - 1 / len(x))[:, None]
        error = float((left**2).sum())
        if error < best:
            best, found = error, vt.T @ ((s / (s**2 + strength))[:, None] * inner)
    outputs: np.ndarray = ((new - mean) / std) @ found + targets.mean(0)
    return outputs


def _some(images: ImageSet, most: int) -> ImageSet:
    """Return all images, or so many of them, evenly spaced."""
    if len(images) <= most:
        return images
    return images.subset(np.linspace(0, len(images) - 1, most).astype(np.int64))
