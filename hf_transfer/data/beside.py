"""Images without labels that phases with `pseudo` learn from beside the labelled ones."""

from __future__ import annotations

import os
from pathlib import Path

from hf_transfer.base.errors import DataError
from hf_transfer.data.image_set import ImageData, held_out, load_data
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.sources import list_source
from hf_transfer.recipe.specs import DataSpec, Recipe
from hf_transfer.recipe.tasks import REDUNDANCY

LISTED_AS = REDUNDANCY.name  # any task without labels


def check_apart(recipe: Recipe) -> None:
    """Raise DataError where a folder of images without labels is a class of the labelled ones."""
    data, source = recipe.data, recipe.source
    first = source.data.path if source and source.pretext and source.data else None
    for folder in filter(None, (first, data.unlabelled)):
        place = Path(folder).expanduser().resolve()
        found = list_source(data, recipe.task) if place.is_dir() else None
        if found is None or found.table is not None:
            continue
        inside = os.path.relpath(place, Path(found.root).resolve())
        if place.name in found.labels and any(one.startswith(f"{inside}/") for one in found.files):
            raise DataError(
                f"{folder}: this folder of images without labels is also a class of {data.path}, "
                f"{place.name!r}; move it out of there"
            )


def beside_of(recipe: Recipe) -> DataSpec | None:
    """Return the source of a recipe's images without labels, None where no phase has `pseudo`:
    `data.unlabelled`, or what the pretext of its source learns from.

    Raises DataError where there is none.
    """
    if not any(spec.pseudo for spec in recipe.phases):
        return None
    data, source = recipe.data, recipe.source
    first = source.data if source and source.pretext and source.data else DataSpec()
    path = data.unlabelled or first.path
    if path is None:
        raise DataError(
            "no images without labels for pseudo: name a folder with --unlabelled or "
            "data.unlabelled"
        )
    kept = ("channels", "fit", "window", "frame", "max_bad")
    form = {key: getattr(data, key) for key in kept}
    return DataSpec(path=path, validation=0.0, group=first.group, **form)


def count_beside(recipe: Recipe) -> int:
    """Return how many images without labels there are for phases with `pseudo`."""
    spec = beside_of(recipe)
    return len(list_source(spec, LISTED_AS).files) if spec else 0


def load_beside(recipe: Recipe, image: ImageSettings, read_all: bool = False) -> ImageData | None:
    """Return the images without labels of a recipe as training images, without those of its
    validation and test images; None where no phase has `pseudo`. Raises DataError."""
    spec = beside_of(recipe)
    if spec is None:
        return None
    without = held_out(recipe.data, image, recipe.seed, task=recipe.task)
    return load_data(
        spec,
        image,
        recipe.seed,
        task=LISTED_AS,
        read_all=read_all,
        without=without,
        folds=True,
    )
