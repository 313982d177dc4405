"""The way that `auto` takes of those that it tried, and what to expect of it on new images."""

from __future__ import annotations

import dataclasses

import numpy as np

from hf_transfer.deciding.attempts import Attempts
from hf_transfer.deciding.choosing import Prior, best_of, chosen_blindly, gain, predicted
from hf_transfer.recipe.tasks import CLASSIFICATION


def take(work: Attempts) -> str:
    """Return the way to take: the start, or fine-tuning of which a gain is expected."""
    taken, why = _unchosen(work) if work.few else _chosen(work)
    work.say(f"chosen: {taken}: {why}")
    work.tried = [dataclasses.replace(t, kept=t.what == taken) for t in work.tried]
    return taken


def _unchosen(work: Attempts) -> tuple[str, str]:
    """Return what is taken where images are too few to choose by, and why."""
    for way, prior in _priors(work).items():
        gained = f"on other tasks this gained {100 * prior.mean:g} points on average"
        return way, f"{work.too_few()}, and {gained}"
    return work.start.what, work.too_few()


def _chosen(work: Attempts) -> tuple[str, str]:
    priors = _priors(work)
    ways = {way: work.ways[way] for way in (work.start.what, *work.origin)}
    truth, groups, weights = work.of()
    chosen = best_of(ways, truth, groups, priors=priors, weights=weights)
    if chosen in priors:
        found = gain(ways[chosen], ways[work.start.what], truth, groups, weights)
        points = 100 * found.expected(priors[chosen])
        return chosen, (
            f"{points:+.1f} points to expect, from the gain here and what such training gains "
            "on other tasks"
        )
    if chosen in work.origin:
        return chosen, "its gain is above its standard error"
    return chosen, "no fine-tuning is expected to gain on it" if work.origin else "the start"


def _priors(work: Attempts) -> dict[str, Prior]:
    """Return what each way to fine-tune gains elsewhere, which was measured for classes."""
    if work.task is not CLASSIFICATION:
        return {}
    return {what: trial.candidate.points[at] for what, (trial, at) in work.origin.items()}


def expected(work: Attempts, taken: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, logits) of images that had no part in training, nor in choosing, what predicts
    them: of those that the taken way has predicted, which are all where it is a head."""
    heads, tuned = [what for what in work.ways if what not in work.origin], taken in work.origin
    ways = {what: work.ways[what] for what in (work.ways if tuned else heads)}
    told = predicted(ways[taken])
    fold = max(work.folds, key=lambda one: len(np.unique(one[told])))
    if work.few or len(ways) == 1 or len(np.unique(fold[told])) < 2:
        return np.flatnonzero(told), ways[taken][told]
    stages = (heads[1:], list(work.origin)) if tuned else (heads[1:],)
    truth, groups, weights = work.of()
    found = chosen_blindly(ways, truth, fold, groups, stages, _priors(work), weights)
    rows = np.flatnonzero(predicted(found) & told)
    return rows, found[rows]


def parts(work: Attempts, taken: str) -> int:
    """Return in how many parts a way was cross-validated; 1 where one part was held out."""
    if taken not in work.origin:
        return len(set(work.folds[0]))
    trial, _ = work.origin[taken]
    return len(trial.parts) if trial.done > 1 else 1
