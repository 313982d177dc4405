"""A column of values of which most are the same, one for each of many images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np


class Codes(Sequence[Any]):
    """Values by the row: `codes` (N,) are places in a `table` of the different ones.

    Equals any other sequence of the same values. Values are hashable.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: Iterable[Hashable] = ()) -> None:
        places: dict[Hashable, int] = {}
        self.codes = np.fromiter(
            (places.setdefault(value, len(places)) for value in values), np.uint32
        )
        self.table: list[Any] = list(places)

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[Any]:
        return map(self.table.__getitem__, self.codes.tolist())

    def __getitem__(self, row: Any) -> Any:
        """Return the value of one row, or of a slice a tuple."""
        found = self.codes[row]
        return self.table[found] if found.ndim == 0 else tuple(map(self.table.__getitem__, found))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(mine == theirs for mine, theirs in zip(self, other, strict=True))
        )

    def where(self, value: Any) -> np.ndarray:
        """Return the rows that have a value, in order: int64."""
        place = self.table.index(value) if value in self.table else len(self.table)
        return np.flatnonzero(self.codes == place)

    def take(self, rows: np.ndarray) -> Codes:
        """Return the values of these rows."""
        return self._with(self.table, self.codes[rows])

    def map(self, function: Callable[[Any], Hashable]) -> Codes:
        """Return what a function makes of each value; it is asked once for each different one."""
        made = Codes(map(function, self.table))
        return self._with(made.table, made.codes[self.codes])

    def put(self, rows: np.ndarray, value: Any) -> Codes:
        """Return the same values, but this one in these rows."""
        table = self.table if value in self.table else [*self.table, value]
        codes = self.codes.copy()
        codes[rows] = table.index(value)
        return self._with(table, codes)

    @staticmethod
    def _with(table: list[Any], codes: np.ndarray) -> Codes:
        made = Codes()
        made.table, made.codes = table, codes
        return made
