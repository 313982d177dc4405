"""The tree of modules that hold parameters, and the units into which it falls.

A unit is a path of the tree that stays together. Blocks are the children of lists and sequences;
where there are none, every layer with weights is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hf_transfer.planning.layout import Layout

# Children that run one after the other though no list holds them: RegNet's b1, b2, DLA's tree1.
NUMBERED = re.compile(r"(.*\.)?(s|b|block|cell|layer|level|stage|tree|unit)_?\d+")
LONG = 16  # layers; a unit of more is split where it holds a third of the network, else half


@dataclass
class Unit:
    """Parameters that stay together: a path of the tree, and whether it is a block."""

    path: str
    names: list[str]
    block: bool


class Tree:
    """Modules with parameters below the head, in order of first use."""

    def __init__(self, layout: Layout, body: Sequence[str]) -> None:
        self.order = {name: i for i, name in enumerate(body)}
        self.weights = layout.weights
        self.shapes = dict(layout.parameters)
        self.sequences = set(layout.sequences)
        self.with_head = {path for name in layout.head for path in above(name)}
        self.flat = False  # no blocks were found: every layer is a unit
        self.kids: dict[str, dict[str, None]] = {}
        self._size = layout.sizes
        self._below: dict[str, list[str]] = {"": list(body)}
        for name in body:
            chain = ["", *above(name), name]
            for path, kid in zip(chain, chain[1:], strict=False):
                self.kids.setdefault(path, {})[kid] = None
                if path:
                    self._below.setdefault(path, []).append(name)
        self.lists = self.sequences | {path for path in self.kids if self._is_numbered(path)}

    def _is_numbered(self, path: str) -> bool:
        """Whether blocks or stages make up a module, by their names."""
        kids = [kid for kid in self.kids[path] if NUMBERED.fullmatch(kid)]
        return sum(self.depth(kid) > 1 for kid in kids) > 1

    def names(self, path: str) -> list[str]:
        """Return the parameters below a path; of a parameter's own path, itself."""
        return self._below.get(path, [path])

    def scalars(self, path: str) -> int:
        """Return the number of scalars below a path."""
        return sum(self._size[name] for name in self.names(path))

    def depth(self, path: str) -> int:
        """Return how many layers with weights are below a path."""
        return len({name.rpartition(".")[0] for name in self.names(path) if name in self.weights})

    def units(self) -> list[Unit]:
        """Return the units of the whole network, by the first use of each module."""
        found = [unit for kid in self.kids[""] for unit in self._split(kid, in_list=False)]
        if sum(unit.block for unit in found) < 2:
            deep = [unit for unit in found if self.depth(unit.path) > 1]
            held = sum(self.scalars(unit.path) for unit in deep)
            if len(deep) < 3 or held < self.scalars("") / 2:
                return self._layers()
            for unit in deep:
                unit.block = True
        return [part for unit in found for part in self._halved(unit)]

    def _split(self, path: str, in_list: bool) -> list[Unit]:
        """Return a path's units: a list's children, and where those are lists of blocks (stages)
        or hold one, theirs; else the path itself."""
        kids = self.kids.get(path, {})
        rows = self._rows(path)
        plain = [row for row in rows if sum(outer in self.lists for outer in above(row)) < 2]
        worth = sum(map(self.scalars, rows)) > 0.4 * self.scalars(path) or sum(
            map(self.depth, plain)
        ) > 0.5 * self.depth(path)
        if kids and (worth or path in self.with_head or (path in self.lists and not in_list)):
            listed = path in self.lists
            return [unit for kid in kids for unit in self._split(kid, in_list=listed)]
        listed = in_list or ("" in self.lists and NUMBERED.fullmatch(path) is not None)
        is_block = listed and self.depth(path) > 1 and "stem" not in path.split(".")
        return [Unit(path, self.names(path), is_block)]

    def _rows(self, path: str) -> list[str]:
        """Return the outermost rows in a path: lists of at least two blocks.

        What is in a list (block) of a list (stage) is a row only of blocks that are alike: the
        parts of one block, such as a convolution and two kinds of attention, are not.
        """
        kids = [kid for kid in self.kids.get(path, {}) if self.depth(kid) > 1]
        if path in self.lists and len(kids) > 1:
            if self._is_fork(path, kids):
                return []
            nested = sum(outer in self.lists for outer in above(path))
            if nested < 2 or self._alike(kids):
                return [path]
        return [row for kid in kids for row in self._rows(kid)]

    def _is_fork(self, path: str, kids: Sequence[str]) -> bool:
        """Whether a list in a small part of a list holds lists: branches that run side by side."""
        outer = next((outer for outer in above(path) if outer in self.lists), path)
        part = next((p for p in above(path) if p.startswith(f"{outer}.")), path)
        small = part != path and self.scalars(part) < self.scalars("") / 4
        return small and all(kid in self.lists for kid in kids)

    def row(self, path: str) -> tuple[str | None, str]:
        """Return the outermost list above a path, and that list's child on the way to the path."""
        chain = ["", *above(path), path]
        for outer, child in zip(chain, chain[1:], strict=False):
            if outer in self.lists:
                return outer, child
        return None, path

    def _alike(self, paths: Iterable[str]) -> bool:
        """Return whether each two neighbours share at least half of their parameters' names."""
        inner = [{name.removeprefix(path) for name in self.names(path)} for path in paths]
        return all(len(a & b) * 2 >= len(a | b) for a, b in zip(inner, inner[1:], strict=False))

    def _halved(self, unit: Unit) -> list[Unit]:
        """Return a unit, or the parts of one that holds too much of a deep network.

        A plain residual block stays whole; what has a list of blocks or several parts does not.
        """
        total, depth = self.scalars(""), self.depth(unit.path)
        if depth < 2 or self.scalars(unit.path) <= total / (3 if depth > LONG else 2):
            return [unit]
        deep = [path for path in self._inside(unit.path) if self.depth(path) > 1]
        if len(deep) < 2 and self.kids[unit.path].keys() >= set(deep):
            return [unit]
        parts = []
        for kid in self._inside(unit.path):
            block = self.depth(kid) > 1 or self.scalars(kid) > total / LONG
            parts += self._halved(Unit(kid, self.names(kid), block))
        return parts if sum(part.block for part in parts) > 1 else [unit]

    def _inside(self, path: str) -> list[str]:
        """Return what is right below a path, a list's children in place of the list."""
        kids = [[*self.kids[kid]] if kid in self.lists else [kid] for kid in self.kids[path]]
        return [path for paths in kids for path in paths]

    def _layers(self) -> list[Unit]:
        """Return a unit for each layer with weights; norms and the like go with the one before."""
        self.flat = True
        owners: dict[str, list[str]] = {}
        for name in self.order:
            owners.setdefault(name.rpartition(".")[0], []).append(name)
        units: list[Unit] = []
        for owner, names in owners.items():
            if units and self.weights.isdisjoint(names):
                units[-1].names.extend(names)
            else:
                units.append(Unit(owner, list(names), True))
        return units

    def settled(self) -> list[Unit]:
        """Return units that never run into the next: the stem, blocks, then what follows them."""
        units = self._disjoint()
        first, last = self._ends(units)
        settled = [_joined(units[:first])] if first else []
        waiting: list[Unit] = []  # layers between blocks
        for unit in units[first : last + 1]:
            if not unit.block and self.depth_of(unit) < 2:
                waiting.append(unit)
                continue
            unit.block = True
            back = max(
                (i + 1 for i, w in enumerate(waiting) if _nearer(w, settled[-1], unit)), default=0
            )
            if back:
                settled[-1] = _joined([settled[-1], *waiting[:back]])
            settled.append(_joined([*waiting[back:], unit]))
            waiting = []
        tail = len(settled)
        for unit in units[last + 1 :]:
            if len(settled) > tail and not self.depth_of(unit):
                settled[-1] = _joined([settled[-1], unit])
            else:
                settled.append(unit)
        for unit in settled:
            unit.names.sort(key=self.order.__getitem__)
        return settled

    def depth_of(self, unit: Unit) -> int:
        """Return how many layers with weights a unit has."""
        return len({name.rpartition(".")[0] for name in unit.names if name in self.weights})

    def _disjoint(self) -> list[Unit]:
        """Return the units by first use; those that run into each other are made one."""
        disjoint: list[Unit] = []
        for unit in sorted(self.units(), key=lambda unit: self.span(unit)[0]):
            disjoint.append(unit)
            while len(disjoint) > 1 and self.span(disjoint[-2])[1] > self.span(disjoint[-1])[0]:
                disjoint[-2:] = [_joined(disjoint[-2:])]
        return disjoint

    def span(self, unit: Unit) -> tuple[int, int]:
        """Return the places in the order of use of a unit's first and last parameters."""
        places = [self.order[name] for name in unit.names]
        return min(places), max(places)

    @staticmethod
    def _ends(units: Sequence[Unit]) -> tuple[int, int]:
        blocks = [i for i, unit in enumerate(units) if unit.block]
        return (blocks[0], blocks[-1]) if blocks else (0, len(units) - 1)


def _joined(units: Sequence[Unit]) -> Unit:
    """Return units as one, named after the first block among them, else after the first."""
    main = next((unit for unit in units if unit.block), units[0])
    return Unit(main.path, [name for unit in units for name in unit.names], main.block)


def _nearer(unit: Unit, one: Unit, other: Unit) -> bool:
    """Whether a unit is nearer in the tree to the first of two others."""
    return common_depth(unit.path, one.path) > common_depth(unit.path, other.path)


def common_depth(one: str, other: str) -> int:
    """Return how many parts two paths have in common from the start."""
    count = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        count += 1
    return count


def above(name: str) -> list[str]:
    """Return the modules that a parameter or module is in, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def common(names: Sequence[str]) -> str:
    """Return the innermost module that holds all of the parameters; "" is the network itself."""
    held = [above(name) for name in names]
    inner = [path for path in held[0] if all(path in paths for paths in held)]
    return inner[-1] if inner else ""
