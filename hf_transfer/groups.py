"""Layer groups: what is frozen, thawed and rated together, ordered from input to output.

A group is a set of layers that run one after the other. Groups are found from the tree of modules
(the children of lists and sequences are blocks) and from the order in which parameters are first
used; where the two disagree, the order wins, so that no group ever runs into another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isqrt
from typing import Any

from hf_transfer.recipe import UserError


class GroupsError(UserError):
    """A network in which no regular order of layers can be found."""


@dataclass(frozen=True)
class Layout:
    """A network's structure without the network, by the bare network's own names."""

    parameters: tuple[tuple[str, tuple[int, ...]], ...]  # (name, shape) in order of first use
    unused: tuple[str, ...] = ()  # never used by a forward pass: mask tokens, auxiliary heads
    sequences: tuple[str, ...] = ()  # modules whose children run one after the other
    head: tuple[str, ...] = ()  # newly initialised for the labels; told by the loader
    norms: tuple[str, ...] = ()  # normalisation layers
    loose: tuple[tuple[str, int], ...] = ()  # dropout and its kin: (path, parameters used before)
    no_decay: tuple[str, ...] = ()  # that the backbone itself exempts from weight decay
    macs: tuple[int, ...] = ()  # multiply-adds of one image, by parameter, as far as counted
    shared: tuple[tuple[str, ...], ...] = ()  # other names of one parameter, after the one above
    image: dict[str, Any] = field(default_factory=dict)
    labels: int = 0

    @cached_property
    def sides(self) -> dict[str, int]:
        """Side, in positions, of what each convolution or product gives; 0 for other parameters."""
        return {
            name: isqrt(macs // max(1, self.sizes[name]))
            for (name, _), macs in zip(self.parameters, self.macs, strict=False)
        }

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Scalars in each parameter."""
        return {name: _product(shape) for name, shape in self.parameters}

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as plain JSON values; `from_dict` gives an equal layout."""
        return {
            "parameters": [[name, list(shape)] for name, shape in self.parameters],
            **{
                key: list(getattr(self, key))
                for key in (
                    "unused",
                    "sequences",
                    "head",
                    "norms",
                    "no_decay",
                    "macs",
                )
            },
            "loose": [list(entry) for entry in self.loose],
            "shared": [list(names) for names in self.shared],
            "image": dict(self.image),
            "labels": self.labels,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Layout:
        """Return the layout that `to_dict` wrote."""
        lists = ("unused", "sequences", "head", "norms", "no_decay", "macs")
        image = {k: tuple(v) if isinstance(v, list) else v for k, v in values["image"].items()}
        return cls(
            parameters=tuple((name, tuple(shape)) for name, shape in values["parameters"]),
            loose=tuple((path, before) for path, before in values["loose"]),
            shared=tuple(tuple(names) for names in values["shared"]),
            image=image,
            labels=values["labels"],
            **{key: tuple(values[key]) for key in lists},
        )


@dataclass(frozen=True)
class Group:
    """Layers that are frozen, thawed and rated together."""

    name: str
    stage: str
    parameters: tuple[str, ...]
    size: int  # scalars
    modules: tuple[str, ...] = ()  # that are this group's alone; what is below them is too


@dataclass(frozen=True)
class LayerGroups:
    """Groups from input to output; every parameter is in exactly one; the head's comes last."""

    groups: tuple[Group, ...]

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

    @property
    def total(self) -> int:
        """Scalars in all groups."""
        return sum(group.size for group in self.groups)

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
        return LayerGroups(tuple(merged))


def group_layers(layout: Layout) -> LayerGroups:
    """Return the ordered groups of a network: total, disjoint and deterministic.

    Raises GroupsError where the network has no parameters below its head.
    """
    head, unused = set(layout.head), set(layout.unused)
    body = [name for name, _ in layout.parameters if name not in head | unused]
    if not body:
        raise GroupsError("the network has no parameters below its head; there is nothing to group")
    tree = _Tree(layout, body)
    units = _settled(tree.units(), tree)
    members = [list(unit.names) for unit in units]
    _place_unused(layout, units, members)
    names = _names(units, body)
    stages = _stages(units, names, tree, layout)
    if head:
        names.append("head")
        stages.append("head")
        members.append([name for name, _ in layout.parameters if name in head])
    modules = [_modules(own, layout) for own in members]
    loose = _loose_owners(layout, members, modules)
    return LayerGroups(
        tuple(
            Group(
                name,
                stage,
                tuple(own),
                sum(layout.sizes[n] for n in own),
                (*paths, *loose.get(i, ())),
            )
            for i, (name, stage, own, paths) in enumerate(
                zip(names, stages, members, modules, strict=True)
            )
        )
    )


# --- the tree --------------------------------------------------------------------------------


@dataclass
class _Unit:
    """Parameters that stay together: a path of the tree, and whether a block or something else."""

    path: str
    names: list[str]
    block: bool


class _Tree:
    """The tree of modules that hold parameters, in order of first use."""

    def __init__(self, layout: Layout, body: Sequence[str]) -> None:
        self.order = {name: i for i, name in enumerate(body)}
        self.size = {name: layout.sizes[name] for name in body}
        self.matrix = {name for name, shape in layout.parameters if len(shape) > 1}
        self.lists = set(layout.sequences)
        self.below: dict[str, list[str]] = {"": list(body)}
        self.kids: dict[str, dict[str, None]] = {}
        self.flat = False  # no blocks were found: every layer is a unit
        for name in body:
            parts = name.split(".")
            for depth in range(len(parts)):
                path = ".".join(parts[:depth])
                if depth:
                    self.below.setdefault(path, []).append(name)
                self.kids.setdefault(path, {})[".".join(parts[: depth + 1])] = None

    def names(self, path: str) -> list[str]:
        return self.below.get(path, [path])

    def scalars(self, path: str) -> int:
        return sum(self.size[name] for name in self.names(path))

    def is_block(self, path: str) -> bool:
        """A block has at least two weight matrices; a layer with its norm has one."""
        return sum(name in self.matrix for name in self.names(path)) > 1

    def is_row(self, path: str) -> bool:
        """A list or sequence of at least two blocks."""
        return path in self.lists and sum(map(self.is_block, self.kids.get(path, ()))) > 1

    def in_rows(self, path: str) -> int:
        """Scalars below a path that lie in rows of blocks."""
        if self.is_row(path):
            return self.scalars(path)
        return sum(self.in_rows(kid) for kid in self.kids.get(path, ()))

    def units(self) -> list[_Unit]:
        """Return the parts of the network by first use: blocks, layers where there are none."""
        found = [unit for kid in self.kids[""] for unit in self._split(kid, in_list=False)]
        total = self.scalars("")
        if sum(len(unit.names) and unit.block for unit in found) < 2:
            composite = [unit for unit in found if self.is_block(unit.path)]
            held = sum(self.scalars(unit.path) for unit in composite)
            if len(composite) > 2 and held > total / 2 and len(found) > 3:
                for unit in composite:
                    unit.block = True
            else:
                return self._layers()
        return [part for unit in found for part in self._halved(unit, total)]

    def _split(self, path: str, in_list: bool) -> list[_Unit]:
        kids = list(self.kids.get(path, ()))
        if path in self.lists and kids and not (in_list and not self._worth(path)):
            return [unit for kid in kids for unit in self._split(kid, in_list=True)]
        if kids and self._worth(path):
            return [unit for kid in kids for unit in self._split(kid, in_list=False)]
        return [_Unit(path, self.names(path), in_list and self.is_block(path))]

    def _worth(self, path: str) -> bool:
        """Whether rows of blocks make up enough of a path to look inside."""
        return self.in_rows(path) > 0.4 * self.scalars(path)

    def _halved(self, unit: _Unit, total: int) -> list[_Unit]:
        """Split a unit that holds more than a third of the network, as far as it can be."""
        kids = list(self.kids.get(unit.path, ()))
        if not unit.names or self.scalars(unit.path) <= total / 3 or not self.is_block(unit.path):
            return [unit]
        parts = [
            part
            for kid in kids
            for part in self._halved(_Unit(kid, self.names(kid), self.is_block(kid)), total)
        ]
        blocks = sum(part.block for part in parts)
        return parts if blocks > 1 else [unit]

    def _layers(self) -> list[_Unit]:
        """Return one unit for each layer with a weight matrix; norms go with the layer before."""
        self.flat = True
        units: list[_Unit] = []
        owners: dict[str, list[str]] = {}
        for name in self.order:
            owners.setdefault(name.rpartition(".")[0], []).append(name)
        for owner, names in owners.items():
            if units and not self.matrix.intersection(names):
                units[-1].names.extend(names)
            else:
                units.append(_Unit(owner, list(names), True))
        return units


# --- order -----------------------------------------------------------------------------------


def _settled(units: Iterable[_Unit], tree: _Tree) -> list[_Unit]:
    """Return units in order of first use, none running into the next: stem, blocks, neck."""
    first = lambda unit: min(tree.order[name] for name in unit.names)  # noqa: E731
    disjoint: list[_Unit] = []
    for unit in sorted(units, key=first):
        disjoint.append(unit)
        while len(disjoint) > 1 and _last(disjoint[-2], tree) > first(disjoint[-1]):
            late = disjoint.pop()
            disjoint[-1] = _joined(disjoint[-1], late)
    blocks = [i for i, unit in enumerate(disjoint) if unit.block]
    settled: list[_Unit] = []
    waiting: list[_Unit] = []  # layers between blocks go with the block that follows
    for i, unit in enumerate(disjoint):
        waiting.append(unit)
        if blocks[0] <= i <= blocks[-1] and not unit.block:
            continue
        if i < blocks[0] and not disjoint[i + 1].block:
            continue
        if i > blocks[-1] and i + 1 < len(disjoint):
            continue
        whole = waiting[0]
        for other in waiting[1:]:
            whole = _joined(whole, other)
        settled.append(whole)
        waiting = []
    for unit in settled:
        unit.names.sort(key=tree.order.__getitem__)
    return settled


def _last(unit: _Unit, tree: _Tree) -> int:
    return max(tree.order[name] for name in unit.names)


def _joined(one: _Unit, other: _Unit) -> _Unit:
    """Return both as one: the block's path, else that of the first."""
    path = other.path if other.block and not one.block else one.path
    return _Unit(path, [*one.names, *other.names], one.block or other.block)


def _place_unused(layout: Layout, units: Sequence[_Unit], members: list[list[str]]) -> None:
    """Put parameters that never run beside their nearest relatives in the tree."""
    for name in layout.unused:
        if name in layout.head:
            continue
        best, depth = 0, -1
        for i, unit in enumerate(units):
            shared = max(_shared(name, other) for other in unit.names)
            if shared > depth:
                best, depth = i, shared
        members[best].append(name)


def _shared(one: str, other: str) -> int:
    count = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        count += 1
    return count


# --- names -----------------------------------------------------------------------------------


def _names(units: Sequence[_Unit], body: Sequence[str]) -> list[str]:
    """Return a name for each unit: its path; `stem` before the first block, the norm's own name
    or `neck` after the last."""
    drop = _common(body)
    names = []
    for i, unit in enumerate(units):
        owners = {name.rpartition(".")[0] for name in unit.names}
        if unit.block:
            name = unit.path.removeprefix(drop)
        elif i == 0:
            name = "stem"
        else:
            name = owners.pop().removeprefix(drop) if len(owners) == 1 else "neck"
        names.append(name or unit.names[0])
    return [name if names.index(name) == i else f"{name}+{i}" for i, name in enumerate(names)]


def _common(body: Sequence[str]) -> str:
    """Return the first part of all names where it says nothing (`vit.`), not `features.`."""
    firsts = {name.split(".")[0] for name in body}
    drop = f"{firsts.pop()}." if len(firsts) == 1 else ""
    return "" if any(name.removeprefix(drop)[:1].isdigit() for name in body) else drop


def _stages(units: Sequence[_Unit], names: Sequence[str], tree: _Tree, layout: Layout) -> list[str]:
    """Return each unit's stage: the part of the backbone that works at one depth and resolution."""
    blocks = [i for i, unit in enumerate(units) if unit.block]
    outer = {i: _outermost(units[i].path, tree.lists) for i in blocks}
    several = len({row for row, _ in outer.values()}) > 1 and not tree.flat
    drop = _common(list(tree.order))
    stages: list[str] = []
    for i, unit in enumerate(units):
        if not unit.block:
            stages.append("stem" if not stages else stages[-1])
            continue
        row, child = outer[i]
        if row and child != unit.path:
            stage = child
        elif row and several:
            stage = row
        else:
            side = next((layout.sides[n] for n in reversed(unit.names) if layout.sides.get(n)), 0)
            stage = f"{row}@{side}"
        stages.append(stage.removeprefix(drop))
    flat = {stage for stage in stages if "@" in stage}
    for stage in flat:  # one resolution throughout, as in a ViT: each block is a stage of its own
        own = [i for i in blocks if stages[i] == stage]
        for i in own:
            stages[i] = names[i] if len(flat) == 1 else names[own[0]]
    if stages and not units[-1].block:
        stages[-1] = stages[blocks[-1]]
    return _without_returns(stages)


def _without_returns(stages: list[str]) -> list[str]:
    """A stage is one run of groups: where a name comes back after another, it is a new stage."""
    seen: dict[str, int] = {}
    result: list[str] = []
    for i, stage in enumerate(stages):
        if i and stages[i - 1] == stage:
            result.append(result[-1])
            continue
        seen[stage] = seen.get(stage, 0) + 1
        result.append(stage if seen[stage] == 1 else f"{stage}+{seen[stage]}")
    return result


def _outermost(path: str, lists: set[str]) -> tuple[str, str]:
    """Return the outermost list above a path, and that list's child on the way to the path."""
    parts = path.split(".")
    for depth in range(1, len(parts)):
        if ".".join(parts[:depth]) in lists:
            return ".".join(parts[:depth]), ".".join(parts[: depth + 1])
    return "", path


# --- modules ---------------------------------------------------------------------------------


def _modules(own: Sequence[str], layout: Layout) -> tuple[str, ...]:
    """Return the highest modules all of whose parameters are a group's, in order."""
    mine = set(own)
    foreign = {path for name, _ in layout.parameters if name not in mine for path in _above(name)}
    tops = (next((path for path in _above(name) if path not in foreign), None) for name in own)
    return tuple(dict.fromkeys(path for path in tops if path is not None))


def _above(name: str) -> list[str]:
    """Return the modules that a parameter is in, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _loose_owners(
    layout: Layout, members: Sequence[Sequence[str]], modules: Sequence[Sequence[str]]
) -> dict[int, tuple[str, ...]]:
    """Return, by group, the dropout (and its kin) that is in none of the groups' modules.

    It goes with what it acts on, the next parameter that runs; after the last, with the last group.
    """
    where = {name: i for i, own in enumerate(members) for name in own}
    held = {path for paths in modules for path in paths}
    order = [name for name, _ in layout.parameters]
    found: dict[int, list[str]] = {}
    for path, before in layout.loose:
        if held.intersection([path, *_above(path)]):
            continue
        following = [where[name] for name in order[before:] if name not in layout.unused]
        found.setdefault(following[0] if following else len(members) - 1, []).append(path)
    return {i: tuple(paths) for i, paths in found.items()}


def _product(shape: Iterable[int]) -> int:
    result = 1
    for side in shape:
        result *= side
    return result


# --- print -----------------------------------------------------------------------------------


def groups_text(layout: Layout, groups: LayerGroups) -> str:
    """Return the table of a backbone's groups: number, name, stage, parameters, share."""
    total = groups.total
    names = max(5, *(len(group.name) for group in groups.groups))
    stages = max(5, *(len(group.stage) for group in groups.groups))
    lines = [f"{'':>3}  {'group':{names}}  {'stage':{stages}}  {'parameters':>12}  {'share':>6}"]
    for number, group in enumerate(groups.groups, 1):
        lines.append(
            f"{number:>3}  {group.name:{names}}  {group.stage:{stages}}  {group.size:>12,}  "
            f"{group.size / total:>6.1%}"
        )
    lines.append(
        f"{len(groups.groups)} groups in {len(groups.stages)} stages, {total:,} parameters"
        + (f", {len(layout.unused)} of them never used" if layout.unused else "")
    )
    return "\n".join(lines)
