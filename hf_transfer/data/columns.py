"""Packed: a name or a target for each of many images, in tens of bytes and not in hundreds."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from hf_transfer.data.arrays import Grown, spans, take

SORTED_AT_ONCE = 2**14  # texts that are sorted in memory


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
        self._block, self._ends = Grown("B"), Grown("Q")
        self._ends.append(0)
        self._rows: np.ndarray | None = None  # those taken; None: all
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Add a row."""
        self._block.extend(name.encode(errors="surrogateescape"))
        self._ends.append(len(self._block))

    def __len__(self) -> int:
        return len(self._ends) - 1 if self._rows is None else len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return self._texts(range(len(self)))

    def __getitem__(self, row: Any) -> Any:
        """Return the text of one row, or of a slice a tuple."""
        place = range(len(self))[row]
        if isinstance(place, range):
            return tuple(self._texts(place))
        return next(self._texts((place,)))

    def _texts(self, rows: Iterable[int]) -> Iterator[str]:
        block, ends, taken = self._block.view, self._ends.view, self._rows
        for row in rows:
            place = row if taken is None else taken[row]
            yield str(block[ends[place] : ends[place + 1]], "utf-8", "surrogateescape")

    def take(self, rows: np.ndarray) -> Names:
        """Return the texts of these rows; the block is shared, not copied."""
        taken = Names()
        taken._block, taken._ends = self._block, self._ends
        taken._rows = rows if self._rows is None else take(self._rows, rows)
        return taken


class Codes(_Packed):
    """Values of which most are the same, by the row: places in a `table` of the different ones."""

    def __init__(self, values: Iterable[Hashable] = ()) -> None:
        self.table: list[Any] = []
        self._places: dict[Hashable, int] = {}
        self._codes = Grown("I")
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
        return map(self.table.__getitem__, self._codes.view)

    def __getitem__(self, row: Any) -> Any:
        """Return the value of one row, or of a slice a tuple."""
        if isinstance(row, slice):
            return tuple(self.table[code] for code in self._codes.view[row])
        return self.table[self._codes.view[row]]

    @property
    def codes(self) -> np.ndarray:
        """The place in the table of each row: uint32 (N,)."""
        return np.frombuffer(self._codes.view, np.uint32)

    def where(self, value: Hashable) -> np.ndarray:
        """Return which rows have a value: bool (N,)."""
        rows: np.ndarray = self.codes == self._places.get(value, len(self.table))
        return rows

    def take(self, rows: np.ndarray) -> Codes:
        """Return the values of these rows."""
        taken = Codes()
        taken.table, taken._places = self.table, self._places
        taken._fill(self.codes, rows)
        return taken

    def map(self, function: Callable[[Any], Hashable]) -> Codes:
        """Return what a function makes of each value; it is asked once for each different one."""
        made = Codes(map(function, self.table))
        places, made._codes = made.codes, Grown("I")
        made._fill(places, self.codes)
        return made

    def put(self, rows: np.ndarray, value: Hashable) -> None:
        """Give these rows a value."""
        place = self._places.setdefault(value, len(self.table))
        if place == len(self.table):
            self.table.append(value)
        self.codes[rows] = place

    def _fill(self, codes: np.ndarray, rows: np.ndarray) -> None:
        for span in spans(len(rows)):
            self._codes.extend(codes[rows[span]].tobytes())


def sorted_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts sorted, however many: sorted in parts, which are then merged."""
    texts = iter(texts)
    part = sorted(islice(texts, SORTED_AT_ONCE))
    if len(part) < SORTED_AT_ONCE:
        return iter(part)
    names, ends = Names(), [0]
    while part:
        for text in part:
            names.append(text)
        ends.append(len(names))
        part = sorted(islice(texts, SORTED_AT_ONCE))
    parts = zip(ends, ends[1:], strict=False)
    return heapq.merge(*(names._texts(range(*ends)) for ends in parts))
