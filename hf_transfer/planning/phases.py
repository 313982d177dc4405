"""Phases: what a recipe says, on one backbone; selectors resolved, `gradual` expanded, checked."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from hf_transfer.base.errors import RecipeError
from hf_transfer.planning.adapters import Adapters, adapted, select_adapted
from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.layout import Layout
from hf_transfer.planning.phase import Phase, span
from hf_transfer.planning.phase_checks import (
    _adapter_problems,
    _feature_problems,
    _kept_problems,
    _problems,
    _repeats,
    never_cached,
    phase_notes,
)
from hf_transfer.planning.selection import SelectorError, head_parameters, select, share_of, units
from hf_transfer.recipe.specs import GradualSpec, PhaseSpec

__all__ = ["Phase", "SelectorError", "make_phases", "never_cached", "phase_notes", "select", "span"]

SLUG_LENGTH = 40  # of a phase's name, which is part of a folder's


def make_phases(
    specs: Sequence[PhaseSpec | GradualSpec],
    groups: LayerGroups,
    layout: Layout,
    place: str = "recipe",
) -> tuple[Phase, ...]:
    """Return the phases of a recipe on a backbone; `place` names the recipe in messages
    about phases that know no line of a file.

    Raises RecipeError with all problems, each with its line: selectors that match nothing, phases
    that change nothing, features that cannot be kept, a head that never trains, or trains only
    together with the backbone.
    """
    problems: list[str] = []
    phases: list[Phase] = []
    warm: set[str] = set()  # what earlier phases trained
    for number, spec in enumerate(specs, 1):
        where = spec.place or f"{place}: phase {number}"
        for one in _expanded(spec, groups, layout, warm):
            if not phases:
                one = _with_first_layer(one, groups, layout)
            try:
                names, adapters = select_adapted(one.train, groups, layout)
            except SelectorError as error:
                problems.append(f"{where}: train: {error}")
                continue
            whole, there = adapted(adapters, groups, layout)
            made = _phase(one, names, adapters, whole, phases)
            found = _problems(one, names, whole, there, warm) + _adapter_problems(one, adapters)
            found += _feature_problems(made, alone=isinstance(spec, PhaseSpec))
            if phases and not found:
                found = _repeats(one, names, phases[-1])
            problems.extend(f"{where}: {text}" for text in found)
            warm.update(names)
            phases.append(made)
    fresh = () if layout.head_kept else layout.head
    cold = [name for name in fresh if name not in warm and name not in layout.unused]
    if cold and not problems:
        problems.append(
            f"{place}: the new head never trains ({cold[0]}); "
            "add a phase such as {train: head, epochs: 5, lr: 1e-3}"
        )
    problems += _kept_problems(phases, groups, layout, place)
    if problems:
        raise RecipeError(problems)
    return tuple(phases)


def _phase(
    spec: PhaseSpec,
    names: tuple[str, ...],
    adapters: Adapters | None,
    groups: LayerGroups,
    before: Sequence[Phase],
) -> Phase:
    chosen = set(names)
    trains = [not chosen.isdisjoint(group.parameters) for group in groups.groups]
    slug = _slug(spec)
    taken = {phase.name for phase in before}
    name = next(n for n in (slug, *(f"{slug}-{i}" for i in range(2, 10_000))) if n not in taken)
    return Phase(
        index=len(before) + 1,
        name=name,
        groups=tuple(g.name for g, trained in zip(groups.groups, trains, strict=True) if trained),
        parameters=names,
        spec=spec,
        frozen_prefix=trains.index(True),
        adapters=adapters,
    )


def _slug(spec: PhaseSpec) -> str:
    """Return the name of a phase as a folder's name may have it."""
    slug = spec.name or "-".join([spec.train] if isinstance(spec.train, str) else spec.train)
    slug = re.sub(r"[^a-z0-9]+", "-", slug.lower().replace("%", " percent")).strip("-")
    if len(slug) > SLUG_LENGTH:
        slug = slug[: SLUG_LENGTH + 1].rpartition("-")[0]
    return slug or "phase"


def _with_first_layer(spec: PhaseSpec, groups: LayerGroups, layout: Layout) -> PhaseSpec:
    """Return the first phase with what was made to fit other channels, unless it says "not" to it
    or solves for the head alone."""
    train = (spec.train,) if isinstance(spec.train, str) else spec.train
    minus = [text.removeprefix("not ") for text in train if text.startswith("not ")]
    try:
        out = {name for text in minus for name in select(text, groups, layout)}
        there = set(select_adapted(spec.train, groups, layout)[0])
    except SelectorError:
        return spec  # which is said in its place
    first = [name for name in layout.adapted if name not in out and name not in there]
    if not first or spec.solve:
        return spec
    plus = train if len(minus) < len(train) else ("all", *train)
    return replace(spec, train=(*plus, *first), name=spec.name or _slug(spec))


# --- gradual ---------------------------------------------------------------------------------


def _expanded(
    spec: PhaseSpec | GradualSpec, groups: LayerGroups, layout: Layout, warm: Collection[str]
) -> list[PhaseSpec]:
    """Return the phases that a spec stands for; `gradual` leaves out a head that is trained."""
    if isinstance(spec, PhaseSpec):
        return [spec]
    parts = len(units("stages" if spec.grain == "stages" else "blocks", groups, layout))
    total = 100 if spec.grain == "%" else parts
    steps = -(-total // spec.count)
    steps = min(steps, spec.thaws) if spec.thaws else steps
    thawed: dict[int, str] = {} if head_parameters(groups, layout) <= set(warm) else {0: "head"}
    for step in range(1, steps + 1):
        size = min(step * spec.count, total)
        count = share_of(parts, size) if spec.grain == "%" else size
        if count not in thawed:  # a small share of few blocks may thaw nothing more
            thawed[count] = "all" if count == parts else _top(size, spec.grain)
    trains = thawed.values()
    return [_slowed(spec.each, spec.lr_drop**i, train) for i, train in enumerate(trains)]


def _top(size: int, grain: str) -> str:
    if grain == "%":
        return f"last {size}%"
    return f"last {size} {grain.removesuffix('s') if size == 1 else grain}"


def _slowed(each: PhaseSpec, factor: float, train: str) -> PhaseSpec:
    rates = each.lr_geometric and (each.lr_geometric[0] * factor, each.lr_geometric[1] * factor)
    name = f"{each.name} {train}" if each.name else None
    lr = each.lr * factor
    return replace(each, train=train, lr=lr, lr_geometric=rates, name=name)


# --- checks ----------------------------------------------------------------------------------
