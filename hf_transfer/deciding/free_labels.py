"""Whether images without labels are worth learning from first; by numbers and nearness alone."""

from __future__ import annotations

from pathlib import Path

from hf_transfer.data.findings import public_name
from hf_transfer.data.sources import list_source
from hf_transfer.deciding.depth import enough
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.recipe.tasks import CLASSIFICATION, REDUNDANCY, Task

# Images without labels: so many, and so many times the labelled ones. 150 radiographs gained seven
# points beside 45 labelled ones, of which 30 validated, and nothing beside 90 (docs/results.md).
LEAST, TIMES = 150, 3
ENOUGH = 100  # labelled images of each class, from which more of them say what others would


def images_in(folder: str | Path | None) -> int:
    """Return how many images lie below a folder; 0 without a folder. Raises DataError."""
    if folder is None:
        return 0
    return len(list_source(DataSpec(path=str(folder)), REDUNDANCY.name).files)


def on_unlabelled(
    folder: str | Path | None,
    images: int,
    labelled: int,
    smallest: int,
    nearness: str,
    task: Task = CLASSIFICATION,
) -> tuple[str, ...]:
    """Return what to do with so many images in a folder, in a sentence; nothing without a folder.

    `labelled` are the images with labels, `smallest` those of the smallest class (`truth.least`),
    `nearness` is how near they are to those that the backbone was trained on: near, shifted or far.
    """
    if folder is None:
        return ()
    what = f"the {images:,} images in {public_name(str(folder))}"
    if images < max(LEAST, TIMES * labelled):
        return (
            f"{what} are too few beside {labelled:,} labelled ones to learn from them first: "
            f"{max(LEAST, TIMES * labelled):,} would be worth a try",
        )
    if smallest >= ENOUGH:
        return (
            f"with labels for {enough(task, ENOUGH)} or more, as here, learning from {what} first "
            "would hardly help",
        )
    if nearness == "near":
        return (
            f"the images are near those that the backbone was trained on, so that learning from "
            f"{what} first would hardly help",
        )
    return (
        f"{what} may be worth learning from first: few images have labels, and they are not like "
        "those that the backbone was trained on. Try hf-transfer train free_labels, and watch the "
        "probe: it says after each epoch what the features are worth. Frames of films gained much "
        "where we measured it. Photos gained a few points, and most of them without these images: "
        "reestimate_norms: true in the first phase takes seconds, so try that first",
    )
