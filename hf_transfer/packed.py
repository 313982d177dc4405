"""Packed: a name or a target for each of many images, in tens of bytes and not in hundreds."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np


class _Packed(Sequence[Any]):
    """A sequence that equals any other of the same values."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(mine == theirs for mine, theirs in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]


class Names(_Packed):
    """Different texts, by the row: one block of UTF-8, and where each ends. Grows by `append`."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._block, self._ends = bytearray(), array("Q", [0])
        self._rows: np.ndarray | None = None  # those taken; None: all
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Add a row."""
        self._block += name.encode(errors="surrogateescape")
        self._ends.append(len(self._block))

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._rows is None else len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        """Return the text of one row, or of a slice a tuple."""
        place = range(len(self))[row]
        if isinstance(place, range):
            return tuple(self[row] for row in place)
        place = place if self._rows is None else self._rows[place]
        text = self._block[self._ends[place] : self._ends[place + 1]]
        return text.decode(errors="surrogateescape")

    def take(self, rows: np.ndarray) -> Names:
        """Return the texts of these rows; the block is shared, not copied."""
        taken = Names()
        taken._block, taken._ends = self._block, self._ends
        taken._rows = rows if self._rows is None else self._rows[rows]
        return taken


class Codes(_Packed):
    """Values of which most are the same, by the row: places in a `table` of the different ones."""

    def __init__(self, values: Iterable[Hashable] = ()) -> None:
        self.table: list[Any] = []
        self._places: dict[Hashable, int] = {}
        self._codes = array("I")
        for value in values:
            self.append(value)

    def append(self, value: Hashable) -> None:
        """Add a row."""
        place = self._places.setdefault(value, len(self.table))
        if place == len(self.table):
            self.table.append(value)
        self._codes.append(place)

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[Any]:
        return map(self.table.__getitem__, self._codes)

    def __getitem__(self, row: Any) -> Any:
        """Return the value of one row, or of a slice a tuple."""
        if isinstance(row, slice):
            return tuple(self.table[code] for code in self._codes[row])
        return self.table[self._codes[row]]

    @property
    def codes(self) -> np.ndarray:
        """The place in the table of each row: uint32 (N,)."""
        return np.frombuffer(self._codes, np.uint32)

    def where(self, value: Hashable) -> np.ndarray:
        """Return which rows have a value: bool (N,)."""
        rows: np.ndarray = self.codes == self._places.get(value, len(self.table))
        return rows

    def take(self, rows: np.ndarray) -> Codes:
        """Return the values of these rows."""
        taken = Codes()
        taken.table, taken._places = self.table, self._places
        taken._codes = array("I", self.codes[rows].tobytes())
        return taken

    def map(self, function: Callable[[Any], Hashable]) -> Codes:
        """Return what a function makes of each value; it is asked once for each different one."""
        made = Codes(map(function, self.table))
        made._codes = array("I", made.codes[self.codes].tobytes())
        return made
