"""A recipe's phases on one backbone: selectors resolved, `gradual` expanded, everything checked."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import chain, count

from hf_transfer.base.errors import RecipeError
from hf_transfer.planning.adapters import select_adapted, with_adapters
from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.phase import Phase
from hf_transfer.planning.phase_checks import phase_problems, recipe_problems
from hf_transfer.planning.selection import SelectorError, parts, select, share_of
from hf_transfer.recipe.specs import GradualSpec, PhaseSpec

GENTLE_WARMUP = 0.1  # of a phase's steps
SLUG_LENGTH = 40  # of a phase's name, which is part of a folder's


def make_phases(
    specs: Sequence[PhaseSpec | GradualSpec], groups: LayerGroups, place: str = "recipe"
) -> tuple[Phase, ...]:
    """Return the phases of a recipe on a backbone; `place` names the recipe in messages
    about phases that know no line of a file.

    Raises RecipeError with all problems, each with its line: selectors that match nothing, phases
    that change nothing, features that cannot be kept, a head that never trains, or trains only
    together with the backbone.
    """
    problems: list[str] = []
    phases: list[Phase] = []
    for number, spec in enumerate(specs, 1):
        where = spec.place or f"{place}: phase {number}"
        for one in _expanded(spec, groups, phases):
            if not phases:
                one = _with_refitted(one, groups)
            one = settled(one, after_solved=bool(phases and phases[-1].spec.solve))
            try:
                phase = _phase(one, groups, phases)
            except SelectorError as error:
                problems.append(f"{where}: train: {error}")
                continue
            found = phase_problems(phase, phases, alone=isinstance(spec, PhaseSpec))
            problems += [f"{where}: {text}" for text in found]
            phases.append(phase)
    problems = problems or recipe_problems(phases, groups, place)
    if problems:
        raise RecipeError(problems)
    return tuple(phases)


def _phase(spec: PhaseSpec, groups: LayerGroups, before: Sequence[Phase]) -> Phase:
    """Return a phase after those `before` it. Raises SelectorError."""
    names, adapters = select_adapted(spec.train, groups)
    slug, taken = _slug(spec), {phase.name for phase in before}
    possible = chain([slug], (f"{slug}-{i}" for i in count(2)))
    name = next(each for each in possible if each not in taken)
    return Phase(len(before) + 1, name, spec, names, with_adapters(groups, adapters), adapters)


def _slug(spec: PhaseSpec) -> str:
    """Return the name of a phase as a folder's name may have it."""
    slug = spec.name or "-".join([spec.train] if isinstance(spec.train, str) else spec.train)
    slug = re.sub(r"[^a-z0-9]+", "-", slug.lower().replace("%", " percent")).strip("-")
    if len(slug) > SLUG_LENGTH:
        slug = slug[: SLUG_LENGTH + 1].rpartition("-")[0]
    return slug or "phase"


def _with_refitted(spec: PhaseSpec, groups: LayerGroups) -> PhaseSpec:
    """Return the first phase with the layers that were made to fit other channels, unless it says
    "not" to them or solves for the head alone."""
    train = (spec.train,) if isinstance(spec.train, str) else spec.train
    minus = [text.removeprefix("not ") for text in train if text.startswith("not ")]
    try:
        out = {name for text in minus for name in select(text, groups)}
        there = set(select_adapted(spec.train, groups)[0])
    except SelectorError:
        return spec  # reported when the phase is made
    first = [name for name in groups.layout.refitted if name not in out and name not in there]
    if not first or spec.solve:
        return spec
    plus = train if len(minus) < len(train) else ("all", *train)
    return replace(spec, train=(*plus, *first), name=spec.name or _slug(spec))


def settled(spec: PhaseSpec, after_solved: bool) -> PhaseSpec:
    """Return a phase with what it does not say of its warmup and its normalisation statistics.

    A head that was solved for fits the features exactly as they were: unless told otherwise, the
    phase after it warms up for a tenth of its steps, and keeps the statistics of normalisation,
    which another batch's would replace at once. EfficientNet-Lite0 on 100 flowers, 5e-5: 0.60 with
    them kept, 0.42 without.
    """
    if spec.solve:  # by none of them
        return spec
    warmup, still = spec.warmup, spec.still_norms
    if warmup is None:
        warmup = GENTLE_WARMUP if after_solved and spec.schedule != "constant" else 0.0
    if still is None:
        still = after_solved and not spec.reestimate_norms
    return replace(spec, warmup=warmup, still_norms=still)


# --- gradual ---------------------------------------------------------------------------------


def _expanded(
    spec: PhaseSpec | GradualSpec, groups: LayerGroups, before: Sequence[Phase]
) -> list[PhaseSpec]:
    """Return the phases that a spec stands for; `gradual` leaves out a head that has trained."""
    if isinstance(spec, PhaseSpec):
        return [spec]
    has_trained = {name for phase in before for name in phase.parameters}
    return [spec.phase(train, i) for i, train in enumerate(_thawed(spec, groups, has_trained))]


def _thawed(spec: GradualSpec, groups: LayerGroups, has_trained: Collection[str]) -> list[str]:
    """Return the selectors of the steps of `gradual`, each with more of the network."""
    count = len(parts("stages" if spec.grain == "stages" else "blocks", groups))
    whole = 100 if spec.grain == "%" else count
    steps = -(-whole // spec.count)
    steps = min(steps, spec.thaws) if spec.thaws else steps
    by_count: dict[int, str] = {} if groups.head <= set(has_trained) else {0: "head"}
    for step in range(1, steps + 1):
        size = min(step * spec.count, whole)
        thawed = share_of(count, size) if spec.grain == "%" else size
        if thawed not in by_count:  # a small share of few blocks may thaw nothing more
            by_count[thawed] = "all" if thawed == count else _last(size, spec.grain)
    return list(by_count.values())


def _last(size: int, grain: str) -> str:
    if grain == "%":
        return f"last {size}%"
    return f"last {size} {grain.removesuffix('s') if size == 1 else grain}"
