"""Layer groups: what is frozen, thawed and rated together, ordered from input to output.

A group is a set of layers that run one after the other. Groups are found from the tree of modules
(the children of lists and sequences are blocks) and from the order in which parameters are first
used; where the two disagree, the order wins, so that no group ever runs into another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from hf_transfer.base.console import WIDE
from hf_transfer.planning.layout import GroupsError, Layout
from hf_transfer.planning.text_table import table, wrapped
from hf_transfer.planning.tree import Tree, Unit, above, common, common_depth

__all__ = ["Group", "GroupsError", "LayerGroups", "Layout", "group_layers", "groups_text"]

DEEP = 8  # blocks from which on a row that is most of the network is no single stage
MOST = 0.7  # share of the network, in linear layers, that makes a row most of it


@dataclass(frozen=True)
class Group:
    """Layers that are frozen, thawed and rated together."""

    name: str
    stage: str
    parameters: tuple[str, ...]  # in order of first use; those never used last
    size: int  # scalars
    modules: tuple[str, ...] = ()  # that are this group's alone; what is below them is too


@dataclass(frozen=True)
class LayerGroups:
    """A network as groups from input to output; every parameter is in exactly one, the head's last.

    `layout` is the structure that they are groups of.
    """

    groups: tuple[Group, ...]
    layout: Layout

    @property
    def names(self) -> tuple[str, ...]:
        """The groups' names in order."""
        return tuple(group.name for group in self.groups)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages' names in order."""
        return tuple(dict.fromkeys(group.stage for group in self.groups))

    @cached_property
    def _owner(self) -> dict[str, Group]:
        return {name: group for group in self.groups for name in group.parameters}

    def of(self, parameter: str) -> Group:
        """Return the group of a parameter. Raises KeyError."""
        return self._owner[parameter]

    @cached_property
    def head(self) -> frozenset[str]:
        """The newly initialised parameters; of a checkpoint that keeps its head, its group's."""
        if self.layout.head:
            return frozenset(self.layout.head)
        own = [group for group in self.groups if "head" in (group.name, group.stage)]
        return frozenset(name for group in own for name in group.parameters)

    @property
    def total(self) -> int:
        """Scalars in all groups."""
        return sum(group.size for group in self.groups)

    def at(self, size: int) -> LayerGroups:
        """Return the groups for images of `size` px, as `Layout.at`."""
        return replace(self, layout=self.layout.at(size))

    def grain(self, grain: str) -> LayerGroups:
        """Return the groups as they are ("blocks"), or one for each stage ("stages")."""
        if grain == "blocks":
            return self
        merged = []
        for stage in self.stages:
            members = [group for group in self.groups if group.stage == stage]
            merged.append(
                Group(
                    stage,
                    stage,
                    tuple(name for group in members for name in group.parameters),
                    sum(group.size for group in members),
                    tuple(path for group in members for path in group.modules),
                )
            )
        return replace(self, groups=tuple(merged))


def group_layers(layout: Layout) -> LayerGroups:
    """Return the ordered groups of a network: total, disjoint and deterministic.

    The stem comes first, then blocks, then what follows them; the head, where there is one, last.
    Raises GroupsError where the network has no parameters below its head.
    """
    aside = {*layout.head, *layout.unused}
    body = [name for name, _ in layout.parameters if name not in aside]
    if not body:
        raise GroupsError("the network has no parameters below its head; there is nothing to group")
    tree = Tree(layout, body)
    units = tree.settled()
    drop = _wrapper(units, tree)
    names = _names(units, tree, drop)
    stages = _stages(units, names, tree, layout, drop)
    members = [list(unit.names) for unit in units]
    _place_unused(layout, members)
    if layout.head:
        names.append("head")
        stages.append("head")
        members.append([name for name, _ in layout.parameters if name in set(layout.head)])
    modules = _modules(layout, members)
    return LayerGroups(
        tuple(
            Group(name, stage, tuple(own), sum(layout.sizes[n] for n in own), tuple(paths))
            for name, stage, own, paths in zip(names, stages, members, modules, strict=True)
        ),
        layout,
    )


def _place_unused(layout: Layout, members: list[list[str]]) -> None:
    """Put parameters that never run beside their nearest relatives in the tree, else first."""
    relatives = [list(own) for own in members]
    for name in layout.unused:
        if name not in layout.head:
            nearness = [max(common_depth(name, other) for other in own) for own in relatives]
            members[nearness.index(max(nearness))].append(name)


# --- names -----------------------------------------------------------------------------------


def _wrapper(units: Sequence[Unit], tree: Tree) -> str:
    """Return the first part of all blocks' paths where it says nothing (`vit.`), else ""."""
    paths = [unit.path for unit in units if unit.block]
    first = paths[0].partition(".")[0]
    if first in tree.sequences or any(not path.startswith(f"{first}.") for path in paths):
        return ""
    holds_all = len(tree.names(first)) == len(tree.order)
    nested = all(".".join(path.split(".")[:2]) not in tree.lists for path in paths)
    return f"{first}." if holds_all or nested else ""


def _names(units: Sequence[Unit], tree: Tree, drop: str) -> list[str]:
    """Return each unit's name: `stem` before the first block, its module's path elsewhere."""
    names: list[str] = []
    for i, unit in enumerate(units):
        if not unit.block and i == 0 and len(units) > 1:
            names.append("stem")
            continue
        path = unit.path if unit.block and not tree.flat else _path(unit, tree)
        taken = ("", "stem", "head", *names)
        options = (path.removeprefix(drop), path, "neck", f"neck.{i}")
        names.append(next(name for name in options if name not in taken))
    return names


def _path(unit: Unit, tree: Tree) -> str:
    """Return the outermost module that holds just these parameters, else their largest layer."""
    own = [name for name in unit.names if name in tree.weights] or unit.names
    held = common(own)
    if not held:
        largest = max(own, key=tree.scalars)
        held = largest.rpartition(".")[0] or largest
    for path in above(held):
        if path not in tree.with_head and set(tree.names(path)) <= set(unit.names):
            return path
    return held


def _stages(
    units: Sequence[Unit], names: Sequence[str], tree: Tree, layout: Layout, drop: str
) -> list[str]:
    """Return each unit's stage: the part of the backbone that works at one depth and resolution.

    It is the list that holds the blocks, or the list's child where lists are nested; in one single
    row the blocks of equal resolution, and where all are equal, as in a ViT, each block alone.
    """
    blocks = [i for i, unit in enumerate(units) if unit.block]
    rows = {i: tree.row(units[i].path) for i in blocks}
    several = len({row for row, _ in rows.values() if row is not None}) > 1 and not tree.flat
    stages: list[str | None] = [None] * len(units)
    for i in blocks:
        row, child = rows[i]
        if row is not None and child != units[i].path and not tree.flat:
            stages[i] = child.removeprefix(drop)
        elif row and several:
            stages[i] = row.removeprefix(drop)
        elif not several:
            sides = [layout.sides[n] for n in reversed(units[i].names) if layout.sides.get(n)]
            stages[i] = f"{row}@{sides[0] if sides else 0}"
    following = None
    for i in reversed(blocks):  # what is in no list goes with the stage that follows
        stages[i] = following = stages[i] or following
    previous = "stem" if units[0].block or len(units) > 1 else names[0]
    filled: list[str] = []
    for stage in stages:  # what comes after the blocks goes with the last
        previous = stage or previous
        filled.append(previous)
    lists = {row.removeprefix(drop) for row, _ in rows.values() if row}
    return _told_apart(filled, names, units, tree, lists)


def _told_apart(
    stages: list[str], names: Sequence[str], units: Sequence[Unit], tree: Tree, rows: set[str]
) -> list[str]:
    """Return stages named after what holds their blocks, else after the first of them, where only
    resolution tells them apart; rows of transformer blocks that are most of a deep network come
    apart into blocks."""
    own = {stage: [i for i, s in enumerate(stages) if s == stage] for stage in stages}
    alike = len({stage for stage in stages if "@" in stage}) == 1
    result = list(stages)
    for stage, members in own.items():
        blocks = [i for i in members if units[i].block]
        inside = [name for i in blocks for name in units[i].names]
        linear = sum(tree.scalars(name) for name in inside if len(tree.shapes[name]) == 2)
        apart = stage in rows and len(blocks) >= DEEP and linear > MOST * tree.scalars("")
        for i in members:
            if apart or (alike and "@" in stage):
                result[i] = names[i] if i in blocks else result[i - 1]
            elif "@" in stage:
                result[i] = _holder(blocks, members, names)
    seen: list[str] = []
    for i, stage in enumerate(result):  # a name that comes back after another is a new stage
        if i and stages[i] == stages[i - 1] and result[i] == result[i - 1]:
            result[i] = seen[-1]
        elif stage in seen and seen[-1] != stage:
            result[i] = names[i]
        seen.append(result[i])
    return result


def _holder(blocks: Sequence[int], members: Sequence[int], names: Sequence[str]) -> str:
    """Return the path that a stage's blocks share and no other stage has, else the first's name."""
    first = names[blocks[0]]
    depth = min(common_depth(first, names[i]) for i in blocks)
    if depth and all(
        i in members or common_depth(first, name) < depth for i, name in enumerate(names)
    ):
        return ".".join(first.split(".")[:depth])
    return first


# --- modules ---------------------------------------------------------------------------------


def _modules(layout: Layout, members: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return, by group, the outermost modules that are its alone.

    A module without parameters (dropout and its kin) that is in none of them goes with what it
    acts on, the next parameter that runs; after the last, with the last group.
    """
    group = {name: i for i, own in enumerate(members) for name in own}
    owners: dict[str, set[int]] = {}
    for name, i in group.items():
        for path in above(name):
            owners.setdefault(path, set()).add(i)
    modules: list[list[str]] = [[] for _ in members]
    for path, found in owners.items():
        outer = path.rpartition(".")[0]
        if len(found) == 1 and len(owners.get(outer, ())) != 1:
            modules[min(found)].append(path)
    order = [name for name, _ in layout.parameters if name not in layout.unused]
    for path, before in layout.loose:
        if any(len(owners.get(outer, ())) == 1 for outer in above(path)):
            continue
        modules[group[order[before]] if before < len(order) else -1].append(path)
    return modules


# --- print -----------------------------------------------------------------------------------


def groups_text(groups: LayerGroups, width: int = WIDE) -> str:
    """Return the table of a backbone's groups: number, name, stage, parameters, share, weights."""
    layout = groups.layout
    shapes = dict(layout.parameters)
    rows = [[">", "group", "stage", ">parameters", ">share", "largest weight"]]
    for number, group in enumerate(groups.groups, 1):
        largest = max(group.parameters, key=layout.sizes.__getitem__)
        share = f"{group.size / groups.total:.1%}"
        shape = " x ".join(map(str, shapes[largest]))
        rows.append([str(number), group.name, group.stage, f"{group.size:,}", share, shape])
    return "\n".join([*table(rows, width), *wrapped(_summary(groups), width)])


def _summary(groups: LayerGroups) -> str:
    counts = f"{len(groups.groups)} groups in {len(groups.stages)} stages"
    text = f"{counts}, {groups.total:,} parameters"
    layout = groups.layout
    if layout.unused:
        text += f"; never used, so always frozen: {_few(layout.unused)}"
    return text if layout.head else f"{text}; no head: one is added for the labels"


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
