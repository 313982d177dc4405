"""The backbones to choose from: what is published of them, what is here, and their time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_transfer.base.errors import UserError
from hf_transfer.base.signatures import checked
from hf_transfer.deciding.presets import KNOWN, PRESETS, SOURCE, is_here
from hf_transfer.planning.text_table import table, wrapped
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.results.words import show_seconds

BATCH = 8  # images that the time of one pass is measured on


@dataclass(frozen=True)
class Choice:
    """A backbone: millions of parameters, accuracy in per cent as published (with its image size),
    licence, whether its weights are here, and seconds for one pass over the images."""

    id: str
    parameters: float | None
    accuracy: float | None
    at: int | None
    licence: str | None
    here: bool
    presets: tuple[str, ...] = ()
    seconds: float | None = None


@checked
def list_backbones(
    ids: Sequence[str] = (), data: str | Path | None = None, image_size: int | None = None
) -> tuple[Choice, ...]:
    """Return the backbones to choose from: the known ones, and any of `ids` or folders.

    With `data` the time of one pass over its images, of `image_size` pixels, is measured for those
    whose weights are here. Raises UserError.
    """
    images = _count(data) if data is not None else None
    given = [_given(each) for each in ids]
    known = [
        Choice(
            one.id,
            one.parameters,
            one.accuracy,
            one.at,
            one.licence,
            is_here(one.id),
            tuple(name for name, preset in PRESETS.items() if preset.backbone == one.id),
        )
        for one in KNOWN
    ]
    return tuple(_timed(choice, images, image_size) for choice in [*given, *known])


def format_backbones(found: Sequence[Choice], width: int) -> str:
    """Return the backbones as a table."""
    timed = any(choice.seconds is not None for choice in found)
    heading = ("backbone", ">parameters", ">ImageNet", "licence", "here", "preset")
    rows = [(*heading, ">one pass") if timed else heading]
    for choice in found:
        row = (
            choice.id,
            "" if choice.parameters is None else f"{choice.parameters:.1f} M",
            "" if choice.accuracy is None else f"{choice.accuracy:.1f}% at {choice.at} px",
            choice.licence or "not stated",
            "yes" if choice.here else "no",
            ", ".join(choice.presets),
        )
        took = "" if choice.seconds is None else show_seconds(choice.seconds)
        rows.append((*row, took) if timed else row)
    note = f"ImageNet: {SOURCE}. Any timm/NAME, transformers/REPO or torchvision/NAME works too."
    return "\n".join([*table(rows, width), "", *wrapped(note, width)])


def _given(backbone_id: str) -> Choice:
    """Return what a backbone's own files say of it."""
    from hf_transfer.plans import groups_of

    total = groups_of(backbone_id).total
    return Choice(backbone_id, total / 1e6, None, None, None, is_here(backbone_id))


def _count(data: str | Path) -> int:
    from hf_transfer.data.sources import list_source

    return len(list_source(DataSpec(path=str(data))).files)


def _timed(choice: Choice, images: int | None, image_size: int | None) -> Choice:
    """Return a choice with the time of one pass over so many images, if it is here."""
    if images is None or not choice.here:
        return choice
    from dataclasses import replace

    from hf_transfer.backbones.load import load_backbone
    from hf_transfer.data.image_set import ImageSet
    from hf_transfer.deciding.bag import model_logits

    try:
        model = load_backbone(choice.id, ("a", "b"), image_size=image_size)
    except UserError:  # such as a size that it cannot take
        return choice
    image = model.backbone.image
    pixels = np.zeros((BATCH, image.stored, image.stored, image.channels), np.uint8)
    some = ImageSet.from_arrays(pixels, [0] * BATCH, ("a", "b"))
    model_logits(model, some)  # the first pass makes room
    began = time.monotonic()
    model_logits(model, some)
    return replace(choice, seconds=(time.monotonic() - began) / BATCH * images)
