"""What would go wrong with these phases on this data, though not on any: found before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hf_transfer.base.errors import RecipeError, UserError
from hf_transfer.planning.phase import Phase
from hf_transfer.recipe.conflicts import judged_by
from hf_transfer.recipe.specs import PhaseSettings, Recipe
from hf_transfer.recipe.tasks import TASKS

Counts = Mapping[str, Mapping[str, int]]  # images of each label, by split


def check_metrics(recipe: Recipe, counts: Counts) -> None:
    """Raise RecipeError, naming each, for metrics that the validation images cannot give."""
    problems = [
        *_alone(recipe, counts),
        *(
            f"{_place(spec, i)}{text}"
            for i, spec in enumerate(recipe.phases)
            for text in _undefined(recipe, spec, counts)
        ),
    ]
    if problems:
        raise RecipeError(problems)


def _alone(recipe: Recipe, counts: Counts) -> Iterator[str]:
    """Yield the splits that hold one image, where a pretext compares images with each other."""
    if not TASKS[recipe.task].compares:
        return
    for split, use in (("train", "learn from"), ("validation", "validate on")):
        if sum(counts.get(split, {}).values()) == 1:
            remedy = "raise validation in its data, or " if split == "validation" else ""
            yield (
                f"{recipe.data.path}: {recipe.task} compares images with each other, and there is "
                f"1 to {use}; {remedy}add images"
            )


def check_fold(recipe: Recipe, number: int, counts: Counts) -> None:
    """Raise UserError where one part of a cross-validation leaves a class too few images to train
    on; `counts` are those of its splits."""
    train = counts["train"]
    least = min(train, key=lambda label: train[label])
    if recipe.task == "classification" and train[least] < recipe.data.min_per_class:
        raise UserError(
            f"folds: {recipe.folds}: part {number} leaves {train[least]} images of {least} to "
            "train on; use fewer folds, add images, or lower data.min_per_class"
        )


def _undefined(recipe: Recipe, spec: PhaseSettings, counts: Counts) -> Iterator[str]:
    """Yield the metrics that a phase is judged by and that are not defined for this data."""
    labels = {label for split in counts.values() for label in split}
    held_out = counts.get("validation", {})
    if recipe.task != "classification" or recipe.metrics or not held_out:
        return
    lacking = sorted(label for label in labels if not held_out.get(label))
    for key, metric in judged_by(spec):
        if metric == "top5" and len(labels) <= 5:
            yield (
                f"{key}: top5 needs more than 5 labels, and the data has {len(labels)}; "
                "write accuracy"
            )
        if metric == "auroc" and lacking:
            yield (
                f"{key}: auroc needs validation images of every label, and {lacking[0]!r} has "
                "none; write balanced_accuracy, or add images"
            )


def check_batches(phases: Sequence[Phase], images: int, processes: int = 1) -> None:
    """Raise RecipeError, naming each, for phases in which a BatchNorm layer that trains meets a
    batch of one image at one position: it has no statistics."""
    problems = []
    for phase in phases:
        batches = Batches(images, phase.spec.batch_size, processes)
        layer = _batch_norm_of_one_position(phase) if batches.single(phase.spec) else None
        if layer is not None:
            problems.append(single_image(phase, batches, layer))
    if problems:
        raise RecipeError(problems)


@dataclass(frozen=True)
class Batches:
    """How the images of an epoch are dealt out: `size` to a batch, by each of some processes.

    `drops` leaves out a last batch that is smaller; `together` takes batch statistics over the
    images of all processes.
    """

    images: int
    size: int
    processes: int = 1
    drops: bool = False
    together: bool = False

    def sizes(self) -> set[int]:
        """Return how many images the batches have over which statistics are taken."""
        everyone = self.size * self.processes
        found = {everyone if self.together else self.size} if self.images >= everyone else set()
        rest = 0 if self.drops else self.images % everyone
        if rest:
            found |= {rest} if self.together else {rest % self.size or self.size}
            found |= set() if self.together else {min(rest, self.size)}
        return found

    def single(self, spec: PhaseSettings) -> bool:
        """Return whether a phase meets a batch of one image, if only at the end of an epoch."""
        if spec.solve or 1 not in self.sizes():
            return False
        if self.size == 1:
            return True
        number = -(-self.images // (self.size * self.processes))
        length = spec.steps and spec.steps * spec.accumulate
        return length >= number if length else (spec.epochs or 0) >= 1


def single_image(phase: Phase, batches: Batches, layer: str) -> str:
    """Return the problem of a phase whose `layer` meets a batch of one image at one position."""
    size = batches.size
    what = "gives batches of one image"
    if size > 1:
        count = f"{batches.images:,} image{'s' * (batches.images > 1)}"
        what = f"with {count} leaves a last batch of one image"
    tried = (*range(size + 1, 2 * size + 2), *range(size - 1, 1, -1))
    other = next((n for n in tried if 1 not in replace(batches, size=n).sizes()), None)
    place = phase.spec.place or f"phase {phase.name}"
    return (
        f"{place}: batch_size: {size} {what}, and BatchNorm layer {layer} "
        "cannot take statistics of a single value; write "
        + (f"batch_size: {other} or " if other else "")
        + "still_norms: true"
    )


def _batch_norm_of_one_position(phase: Phase) -> str | None:
    """Return the first BatchNorm layer that trains and sees one position of each image."""
    if phase.spec.still_norms:
        return None
    layout, trained = phase.layout, set(phase.parameters)
    weights = {f"{path}.weight": path for path in layout.batch_norms}
    side = 0  # of what the layer before gives
    for name, _ in layout.parameters:
        side = layout.sides.get(name, 0) or side
        if side == 1 and name in weights and name in trained:
            return weights[name]
    return None


def _place(spec: PhaseSettings, index: int) -> str:
    return f"{spec.place or f'phases[{index}]'}: "
