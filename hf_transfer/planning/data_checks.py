"""What would go wrong with these phases on this data, though not on any: found before training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hf_transfer.base.errors import RecipeError
from hf_transfer.planning.phase import Phase
from hf_transfer.recipe.conflicts import judged_by
from hf_transfer.recipe.specs import PhaseSettings, Recipe

Counts = Mapping[str, Mapping[str, int]]  # images of each label, by split


def check_metrics(recipe: Recipe, counts: Counts) -> None:
    """Raise RecipeError, naming each, for metrics that the validation images cannot give."""
    problems = [
        f"{_place(spec, i)}{text}"
        for i, spec in enumerate(recipe.phases)
        for text in _undefined(recipe, spec, counts)
    ]
    if problems:
        raise RecipeError(problems)


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
    batch of one image at one position: it has no statistics.

    With several processes only `batch_size: 1` makes such a batch: their last one is filled up.
    """
    problems = []
    for phase in phases:
        size = phase.spec.batch_size
        is_last = size > 1 and processes == 1 and images % size == 1 and _ends_epochs(phase, images)
        layer = _batch_norm_of_one_position(phase) if size == 1 or is_last else None
        if layer is None or phase.spec.solve:
            continue
        what = "leaves a last batch" if is_last else "gives batches"
        other = next((n for n in range(size + 1, 2 * size + 2) if images % n != 1), None)
        problems.append(
            f"{_place(phase.spec, phase.index - 1)}batch_size: {size} {what} of one image, of "
            f"which BatchNorm layer {layer} sees a single position and cannot train; write "
            + (f"batch_size: {other} or " if other else "")
            + "still_norms: true"
        )
    if problems:
        raise RecipeError(problems)


def _ends_epochs(phase: Phase, images: int) -> bool:
    """Whether a phase is long enough to meet the last batch of an epoch."""
    batches = -(-images // phase.spec.batch_size)
    length = phase.spec.steps and phase.spec.steps * phase.spec.accumulate
    return length >= batches if length else (phase.spec.epochs or 0) >= 1


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
