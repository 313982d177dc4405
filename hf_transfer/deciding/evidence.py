"""What two passes over labelled images tell of one backbone, before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from hf_transfer.data.image_set import ImageSet
from hf_transfer.deciding.boundaries import Boundaries, boundary_features, statistics_of
from hf_transfer.deciding.depth import Depth, depths_of
from hf_transfer.deciding.folds import folds
from hf_transfer.deciding.heads import fit_heads, honest, out_of_fold
from hf_transfer.deciding.label_noise import Suspect, suspects
from hf_transfer.deciding.probes import (
    Curve,
    behind,
    interval,
    learning_curve,
    log_evidence,
    nearest,
    probe_scores,
    ridge,
    standardised,
    targets_of,
)
from hf_transfer.deciding.shift import Distance, Watch, distance_of, gradient_norms
from hf_transfer.deciding.truth import scores, truth_of
from hf_transfer.results.metrics.classification import softmax
from hf_transfer.training.norm_statistics import layers

MOST_PROBED = 16  # groups whose features are probed; of more those that begin a stage
REPEATS_BELOW = 400  # images, below which folds are dealt twice
ANEW, WHOLE = "re-estimated statistics", "the whole image"  # changes that may help
ANEW_SHARE, MOST_ANEW = 0.5, 400  # images that say whether re-estimated statistics help
GRADIENTS = 0.05  # share of the images whose gradients are taken
FEWEST, MOST_GRADIENTS = 4, 64
WATCHED = 128  # images that say how far they are from the backbone's own
HEAD_STRENGTHS = tuple(10.0 ** np.arange(-4, 1))  # of the exact heads, which find wrong labels
FAR, SHIFTED = 0.12, 0.07  # distances from which images are far from the backbone's own, or shifted


@dataclass(frozen=True)
class Probe:
    """A probe on the features that arrive at a group: its score, and two second opinions."""

    group: str
    value: float
    interval: tuple[float, float]
    neighbours: float  # the score of the mean of an image's nearest ones, of classes their vote
    evidence: float  # LogME


@dataclass(frozen=True)
class Change:
    """What another way to look at the images gains, on the same images, with its standard error."""

    what: str
    images: int
    gain: float
    error: float


@dataclass(frozen=True)
class Evidence:
    """What a backbone's features tell; nothing of it was trained on what it is judged by."""

    probes: tuple[Probe, ...]
    depths: tuple[Depth, ...]
    distance: Distance | None
    nearness: str  # near, shifted or far
    changes: tuple[Change, ...]
    gradients: dict[str, float]  # relative norms by group
    curve: Curve
    suspects: tuple[Suspect, ...]  # of classes alone
    right: np.ndarray  # (N,) the score of each image by the probe on what the head reads
    passes: float  # over the images, forward passes; a gradient counts as three
    seconds: float

    @property
    def head(self) -> Probe:
        """The probe on what the head reads."""
        return self.probes[-1]

    @property
    def early(self) -> bool:
        """Whether images look different from the first layers on, so that these should move."""
        seen = self.distance is not None and self.distance.first >= SHIFTED
        seen = seen and self.nearness != "near"
        values = list(self.gradients.values())
        third = max(1, len(values) // 3)
        return seen and sum(values[:third]) / third > sum(values[third:]) / max(
            1, len(values) - third
        )


def evidence_of(
    model: PreTrainedModel,
    images: ImageSet,
    groups: np.ndarray | None = None,
    *,
    whole: tuple[np.ndarray, ImageSet] | None = None,
    seed: int = 0,
) -> Evidence:
    """Return what labelled images tell of a backbone; `groups` (N,) are kept together in folds.

    `whole` are some of the images, by their places, seen whole where `images` are cropped.
    """
    began = time.monotonic()
    with Watch(model) as watch:
        found = boundary_features(model, images)
    distance, passes = watch.distance(), 1.0
    if watch.layers and watch.images < len(images):  # the features were there already
        some = images.subset(_drawn(len(images), min(WATCHED, len(images)), seed))
        distance, passes = distance_of(model, some), len(some) / len(images)
    truth = truth_of(images)
    targets = targets_of(truth, len(images.names))
    repeats = 2 if len(truth) < REPEATS_BELOW else 1
    dealt = folds(truth, repeats=repeats, groups=groups, seed=seed)
    probes, values = _probes(model, found, truth, targets, dealt, groups)
    depths = depths_of(model.backbone.groups, found, truth, targets, dealt, groups)
    changes, more = _changes(model, images, found, targets, groups, whole, seed)
    gradients, some = _gradients(model, images, found, dealt[0])
    return Evidence(
        probes=probes,
        depths=depths,
        distance=distance,
        nearness=_nearness(distance, values),
        changes=changes,
        gradients=gradients,
        curve=learning_curve(found.head, truth, targets, dealt, seed),
        suspects=_suspects(found.head, truth, targets, dealt[0]),
        right=next(reversed(values.values())),
        passes=passes + more + some,
        seconds=time.monotonic() - began,
    )


def _probes(
    model: PreTrainedModel,
    found: Boundaries,
    truth: np.ndarray,
    targets: np.ndarray,
    dealt: np.ndarray,
    groups: np.ndarray | None,
) -> tuple[tuple[Probe, ...], dict[str, np.ndarray]]:
    """Return the probes by depth, and the score of each image by each."""
    probes, values = [], {}
    for name in probed(model, found):
        features = found.features[name]
        own = values[name] = probe_scores([features], truth, targets, dealt)
        near = nearest(features, targets, dealt[0])
        probes.append(
            Probe(
                name,
                float(own.mean()),
                interval(own, groups, int(dealt.max()) + 1),
                float(scores(near, truth).mean()),
                log_evidence(features, targets),
            )
        )
    return tuple(probes), values


def probed(model: PreTrainedModel, found: Boundaries) -> list[str]:
    """Return the groups whose features are probed: all, or where there are many the first of each
    stage, thinned to MOST_PROBED; the head is always among them."""
    names = list(found.groups)
    if len(names) > MOST_PROBED:
        stage = {group.name: group.stage for group in model.backbone.groups.groups}
        starts = [n for at, n in enumerate(names) if not at or stage[n] != stage[names[at - 1]]]
        names = [*starts, names[-1]] if starts[-1] != names[-1] else starts
    if len(names) > MOST_PROBED:
        places = np.unique(np.linspace(0, len(names) - 1, MOST_PROBED).astype(int))
        names = [names[place] for place in places]
    return names


def _nearness(distance: Distance | None, values: Mapping[str, np.ndarray]) -> str:
    """Return how far the images are from the backbone's own, in a word.

    Shifted: BatchNorm layers get other values than in training. Far: they do, and lower layers know
    more of what is asked than the last one, which is made for other pictures. Without BatchNorm
    the second sign alone counts, where it is clear.
    """
    scored = list(values.values())
    lead = [behind(one, scored[-1]) for one in scored[:-1]]
    gain, error = max(lead, default=(-1.0, 0.0))
    if distance is None:
        return "far" if gain > 2 * error else "near"
    if distance.all >= FAR and gain > 0:
        return "far"
    return "shifted" if distance.all >= SHIFTED else "near"


def _changes(
    model: PreTrainedModel,
    images: ImageSet,
    found: Boundaries,
    targets: np.ndarray,
    groups: np.ndarray | None,
    whole: tuple[np.ndarray, ImageSet] | None,
    seed: int,
) -> tuple[tuple[Change, ...], float]:
    """Return what re-estimated statistics and whole images would gain, and the passes that took.

    A third of some images judges; statistics and probes are of the others.
    """
    changes, count = [], len(images)
    passes = 0.0
    if layers(model):
        some = _drawn(count, min(MOST_ANEW, max(9, int(ANEW_SHARE * count))), seed)
        own = images.subset(some)
        fold = _one_fold(own, groups, some, seed)
        statistics = statistics_of(model, own, np.flatnonzero(fold != 0))
        anew = boundary_features(model, own, statistics=statistics, keep=False).head
        changes.append(_change(ANEW, found.head[some], anew, own, targets[some], fold))
        passes += (len(some) + int((fold != 0).sum())) / count
    if whole is not None:
        some, own = whole
        fold = _one_fold(own, groups, some, seed)
        seen = boundary_features(model, own, keep=False).head
        changes.append(_change(WHOLE, found.head[some], seen, own, targets[some], fold))
        passes += len(own) / count
    return tuple(changes), passes


def _one_fold(
    images: ImageSet, groups: np.ndarray | None, rows: np.ndarray, seed: int
) -> np.ndarray:
    own = None if groups is None else groups[rows]
    return folds(truth_of(images), 3, repeats=1, groups=own, seed=seed)[0]


def _change(
    what: str,
    before: np.ndarray,
    after: np.ndarray,
    images: ImageSet,
    targets: np.ndarray,
    fold: np.ndarray,
) -> Change:
    """Return what the second features gain on the images of fold 0, which nothing was fitted on."""
    inside, outside = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    told, truth = [], truth_of(images)[outside]
    for features in (before, after):
        answers = ridge(*standardised([features], inside, outside), targets[inside])
        told.append(scores(answers.mean(0), truth))  # of all strengths together
    gain, error = behind(told[1], told[0])
    return Change(what, len(outside), gain, error)


def _gradients(
    model: PreTrainedModel, images: ImageSet, found: Boundaries, fold: np.ndarray
) -> tuple[dict[str, float], float]:
    """Return relative gradient norms by group on images that the head was not fitted on, and the
    passes that took."""
    inside, outside = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    count = min(MOST_GRADIENTS, max(FEWEST, int(GRADIENTS * len(images))), len(outside))
    truth = truth_of(images)[inside]
    if len(np.unique(truth, axis=0)) < 2:
        return {}, 0.0
    head = fit_heads(found.head[inside], truth, len(images.names), HEAD_STRENGTHS[:1])[0]
    places = np.linspace(0, len(outside) - 1, count).astype(int)
    norms = gradient_norms(model, images, outside[places], head)
    return norms, 3 * count / len(images)


def _suspects(
    features: np.ndarray, truth: np.ndarray, targets: np.ndarray, fold: np.ndarray
) -> tuple[Suspect, ...]:
    """Return the images whose class is likely wrong, by exact heads and by the nearest images."""
    if truth.ndim > 1:
        return ()
    logits = out_of_fold(features, truth, targets.shape[1], fold, HEAD_STRENGTHS)
    second = nearest(features, targets, fold).argmax(1)
    return suspects(softmax(honest(logits, truth, fold)), truth, second)


def _drawn(count: int, some: int, seed: int) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(count)[:some])
