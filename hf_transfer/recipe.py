"""Recipes: strict YAML to frozen dataclasses and back."""

from __future__ import annotations

from dataclasses import dataclass


class UserError(ValueError):
    """A mistake that the user can mend: one line that says what, where and what to do."""


@dataclass(frozen=True)
class Augment:
    """How training images are varied; everything off by default."""

    crop: tuple[float, float] | None = None
    flip: bool = False
    vertical_flip: bool = False
    color: float = 0.0
    erase: float = 0.0
    rotate: float = 0.0


@dataclass(frozen=True)
class DataSpec:
    """Where the images are and how they are split."""

    path: str | None = None
    validation: float = 0.2
    test: float = 0.0
    image_size: int | None = None
    train_per_class: int | None = None
    validation_per_class: int | None = None
    image_column: str = "image"
    label_column: str = "label"
    config: str | None = None
    max_bad: float = 0.01
    min_per_class: int = 2
