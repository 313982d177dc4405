"""The labelled images that backbones are looked at with, and what each backbone makes of them."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_transfer.backbones.load import BackboneError, load_backbone, options_of
from hf_transfer.data.image_set import ImageData, ImageSet
from hf_transfer.data.image_settings import fitted
from hf_transfer.data.pixels import open_pixels
from hf_transfer.data.scan import Scan
from hf_transfer.deciding.depth import Choice, choose
from hf_transfer.deciding.evidence import Evidence, evidence_of
from hf_transfer.deciding.folds import groups_of, labelled
from hf_transfer.deciding.truth import least, truth_of
from hf_transfer.inputs.arriving import arriving, at_once, input_of
from hf_transfer.recipe.specs import Recipe
from hf_transfer.recipe.tasks import TASKS

MOST, PER_CLASS = 1500, 20  # images looked at, or so many of each class where that is more
PASSES = 2.5  # over the images at most, of each backbone
PASS_SHARE = 0.6  # of the budget; the rest is for what is computed from the features
UNTRAINED = re.compile(r",? or set pretrained: false( for random weights)?")  # no advice for these
WHOLE_SHARE, MOST_WHOLE = 0.25, 300  # images that say whether cropping loses


@dataclass(frozen=True)
class BackboneAdvice:
    """What a backbone's features tell of these images, and the depth to train it to.

    `behind` is how much less its head scores than the best backbone's on the same images, with the
    standard error; None for the best.
    """

    id: str
    image_px: int
    parameters: int
    evidence: Evidence
    choice: Choice
    behind: tuple[float, float] | None = None

    @property
    def expected(self) -> float:
        """The score to expect on new images: halfway from the head alone to what probes on the
        features of all that would train say, which training need not reach; never less than the
        head alone, from which training starts."""
        head = self.evidence.depths[0].value
        return max(head, (head + self.choice.depth.value) / 2)

    @property
    def expected_interval(self) -> tuple[float, float]:
        """What the score lies in: both probes' 95% intervals together."""
        both = (self.evidence.depths[0].interval, self.choice.depth.interval)
        return min(low for low, _ in both), max(high for _, high in both)


class Looks:
    """The images that all backbones are looked at with: drawn once, the same for each."""

    def __init__(self, recipe: Recipe, listed: Scan, seed: int, seconds: float | None) -> None:
        self.recipe, self.listed = replace(recipe, seed=seed), listed
        self.seed, self.seconds = seed, seconds
        self.files: tuple[str, ...] | None = None  # of the images looked at, once they are drawn
        self.groups: np.ndarray | None = None
        self.notes: list[str] = []

    def at(self, name: str) -> BackboneAdvice:
        """Return what a backbone's features tell of the images."""
        recipe = self.recipe
        model = self._model(name, recipe.data.fit)
        images = self._drawn(model, labelled(self.recipe, self.listed, model))
        evidence = evidence_of(model, images, self.groups, whole=self._whole(model), seed=self.seed)
        task = TASKS[recipe.task]
        return BackboneAdvice(
            id=name,
            image_px=model.backbone.image.size,
            parameters=model.backbone.groups.total,
            evidence=evidence,
            choice=choose(evidence.depths, self.smallest, evidence.early, task),
        )

    def _model(self, name: str, fit: str | None) -> PreTrainedModel:
        try:
            options = {**options_of(self.recipe), "fit": fit, "seed": self.seed}
            model = load_backbone(name, self.listed.labels, **options)
        except BackboneError as error:
            raise BackboneError(UNTRAINED.sub("", str(error))) from error
        model.eval()
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
        return model

    def _drawn(self, model: PreTrainedModel, data: ImageData) -> ImageSet:
        """Return the images to look at: drawn for the first backbone, the same for the others."""
        pool = data.train
        if self.files is None:
            self.labelled = len(pool)
            self.counts = dict(zip(pool.names, pool.class_counts, strict=True))
            self.smallest = least(truth_of(pool), len(pool.names))
            self.audited = data.audit.findings
            self.cropped = any(finding.kind == "cropped" for finding in self.audited)
            rows = self._rows(model, pool)
            self.images = pool.subset(rows)
            self.files = self.images.files
            self.groups = groups_of(self.listed, self.files)
            return self.images
        place = {name: row for row, name in enumerate(pool.files)}
        return pool.subset([place[name] for name in self.files])

    def _rows(self, model: PreTrainedModel, pool: ImageSet) -> np.ndarray:
        """Return which images are looked at, within limit and budget: of every class its share."""
        most = max(MOST, PER_CLASS * len(pool.names))
        if len(pool) > most:
            self.notes.append(f"looked at {most:,} of {len(pool):,} images: more say little more")
        if self.seconds is not None:
            in_time = int(PASS_SHARE * self.seconds / PASSES / _seconds_an_image(model, pool))
            in_time = max(in_time, 2 * len(pool.names))
            if in_time < min(most, len(pool)):
                most = in_time
                self.notes = [
                    f"the budget allows {most:,} of {len(pool):,} images: estimates are wider"
                ]
        order = np.random.default_rng(self.seed).permutation(len(pool))
        if len(pool) <= most:
            return np.arange(len(pool))
        if pool.labels.ndim > 1:
            return np.sort(order[:most])
        rank = np.empty(len(pool))
        for label in np.unique(pool.labels):
            mine = order[pool.labels[order] == label]
            rank[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
        return np.sort(np.argsort(rank, kind="stable")[:most])

    def _whole(self, model: PreTrainedModel) -> tuple[np.ndarray, ImageSet] | None:
        """Return some of the images seen whole, where much of them is cropped away."""
        if self.recipe.data.fit is not None or not self.cropped:
            return None
        count = len(self.images)
        order = np.random.default_rng(self.seed).permutation(count)
        rows = np.sort(order[: min(MOST_WHOLE, max(9, int(WHOLE_SHARE * count)))])
        own = self.images.subset(rows)
        place = {name: row for row, name in enumerate(self.listed.files)}
        few = self.listed.take(np.array([place[name] for name in own.files]))
        pixels, _ = open_pixels(few, fitted(model.backbone.image, "squash"))
        return rows, ImageSet(pixels, own.labels, own.names, own.files, own.scale)


def _seconds_an_image(model: PreTrainedModel, images: ImageSet) -> float:
    """Return the time of one image's forward pass on this machine, by a batch."""
    rows = np.arange(min(len(images), max(1, at_once(model) // 2)))
    arriving(model, input_of(model, images, rows[:2]))  # the first pass takes longer
    began = time.perf_counter()
    arriving(model, input_of(model, images, rows))
    return (time.perf_counter() - began) / len(rows)
