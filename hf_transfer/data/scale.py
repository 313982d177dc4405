"""The scale of regression targets: standard numbers to train on, and the targets' own units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_transfer.base.errors import DataError

DIGITS = 1e-5  # of a target's size, below which its spread is lost in float32


@dataclass(frozen=True)
class Scale:
    """The units of regression targets: a number is `standard * std + mean`, target by target.

    Training sees standard numbers (mean 0, spread 1), so rates mean the same whatever the units.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, values: np.ndarray, names: Sequence[str]) -> Scale:
        """Return the scale of (N, T) numbers. Raises DataError for a target that hardly varies."""
        exact = np.asarray(values, np.float64)
        mean, std = exact.mean(axis=0), exact.std(axis=0)
        same = (exact == exact[:1]).all(axis=0)
        for name, middle, spread, constant in zip(names, mean, std, same, strict=True):
            if constant:
                raise DataError(
                    f"target {name!r} is {middle:g} in every training image: nothing to learn"
                )
            if spread < DIGITS * abs(middle):
                raise DataError(
                    f"target {name!r} varies by {spread:.2g} about {middle:.6g}, too little for "
                    "32-bit numbers; subtract a constant from it"
                )
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def to_standard(self, values: Any) -> np.ndarray:
        """Return float32 (N, T) standard numbers of numbers in the targets' units."""
        standard = (np.asarray(values, np.float64) - self.mean) / self.std
        return standard.astype(np.float32)

    def to_units(self, standard: Any) -> np.ndarray:
        """Return float64 (N, T) numbers in the targets' units of standard ones."""
        return np.asarray(standard, np.float64) * self.std + self.mean
