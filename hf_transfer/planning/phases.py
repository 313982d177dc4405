"""Phases: what a recipe says, on one backbone; selectors resolved, `gradual` expanded, checked."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from hf_transfer.planning.adapters import Adapters, adapted, select_adapted
from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.layout import Layout
from hf_transfer.planning.selection import SelectorError, head_parameters, select, share_of, units
from hf_transfer.recipe.load import RecipeError
from hf_transfer.recipe.specs import Augment, GradualSpec, PhaseSpec

__all__ = ["Phase", "SelectorError", "make_phases", "never_cached", "phase_notes", "select", "span"]

FOR_FEATURES = {"views": 1, "feature_precision": "fp32"}  # what is for kept features: the default
SLUG_LENGTH = 40  # of a phase's name, which is part of a folder's


@dataclass(frozen=True)
class Phase:
    """A span of training in which a fixed set of parameters trains."""

    index: int  # from 1
    name: str  # unique in its recipe, fit for a folder's name
    groups: tuple[str, ...]  # groups in which something trains, input to output
    parameters: tuple[str, ...]  # all that trains, in execution order
    spec: PhaseSpec
    frozen_prefix: int  # leading groups in which nothing trains: the index of the cut
    adapters: Adapters | None = None  # what trains beside frozen layers

    @property
    def folder(self) -> str:
        """Return the name of the phase's folder, such as phase-1-head."""
        return f"phase-{self.index}-{self.name}"


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


def never_cached(phase: Phase) -> tuple[str, str] | None:
    """Return why the features of a phase cannot be kept on any data, and what would mend it."""
    spec = phase.spec
    if spec.features == "live":
        return "the recipe says so", "remove features: live"
    if not phase.frozen_prefix:
        wanted = "solve: lbfgs and write epochs: 10" if spec.solve else "features: cached"
        return "nothing is frozen below what trains", f"remove {wanted}"
    if spec.mixup or spec.cutmix:
        return "images are mixed anew in every epoch", "remove mixup and cutmix"
    if spec.augment != Augment() and spec.views < 2:
        what = "images vary from epoch to epoch; views: 4 would keep four variations of each"
        return what, "write that, or remove augment"
    return None


def phase_notes(phases: Sequence[Phase], groups: LayerGroups, layout: Layout) -> tuple[str, ...]:
    """Return what is allowed but perhaps not meant, a sentence each.

    Groups that never train though lower ones do, and parameters that the network never uses.
    """
    trained = {name for phase in phases for name in phase.groups}
    light = set()  # groups beside which no adapter can stand
    if any(phase.adapters for phase in phases):
        light = {g.name for g in groups.groups if layout.weights.isdisjoint(g.parameters)}
    rows = [
        (name, name in trained) for name in groups.names if name in trained or name not in light
    ]
    lowest = next((i for i, (_, trains) in enumerate(rows) if trains), len(rows))
    holes = [name for name, trains in rows[lowest:] if not trains]
    notes = []
    if holes:
        verb = "trains" if len(holes) == 1 else "train"
        notes.append(f"{span(holes, groups)} never {verb}, though {rows[lowest][0]} below does")
    if layout.adapted and phases:
        where = [phase.name for phase in phases if set(layout.adapted) <= set(phase.parameters)]
        channels = layout.image.get("channels")
        notes.append(
            f"{layout.adapted[0]} is made from the pretrained one for {channels} channels; "
            + (f"it trains in phase {where[0]}" if where else "it never trains")
        )
    notes += [_beside(phase, groups, layout) for phase in phases if phase.adapters]
    if layout.unused:
        first = f"{layout.unused[0]}{', …' * (len(layout.unused) > 1)}"
        notes.append(f"kept frozen, because the network never uses them: {first}")
    return tuple(notes)


def span(names: Collection[str], groups: LayerGroups) -> str:
    """Return group names in short: neighbours as "layer4.0 … head", at most three such runs."""
    runs: list[list[str]] = []
    before = -2
    for i, name in enumerate(groups.names):
        if name not in names:
            continue
        if i == before + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
        before = i
    shown = [f"{run[0]} … {run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs]
    if len(shown) > 3:
        left = sum(len(run) for run in runs[2:])
        shown = [*shown[:2], f"{left} more"]
    return ", ".join(shown)


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


def _problems(
    spec: PhaseSpec,
    names: Collection[str],
    groups: LayerGroups,
    layout: Layout,
    warm: Collection[str],
) -> list[str]:
    """Return what is wrong with one phase after those that trained `warm`."""
    head, new = head_parameters(groups, layout), set(layout.head) - set(layout.unused)
    below = [name for name in names if name not in head and name not in layout.adapted]
    new = set() if layout.head_kept else new
    problems = []
    if new - set(warm) and below and not spec.cold_head:
        together = not new.isdisjoint(names)
        what = (
            "backbone and new head start to train together, and the head's first steps would "
            "spoil the backbone"
            if together
            else "the backbone trains under a head that is not trained yet"
        )
        problems.append(
            f"{what}; put {{train: head, epochs: 5, lr: 1e-3}} before it, "
            "or write cold_head: true where that is meant"
        )
    problems += _rate_problems(spec, names, groups, layout)
    if spec.l2_sp and not below:
        problems.append("l2_sp pulls the backbone, and only the head trains here; remove it")
    if spec.solve and below:
        problems.append(f"solve: {spec.solve} is for the head alone; write train: head")
    elif spec.solve:
        layers = len(layout.weights.intersection(names))
        if layers != 1:
            problems.append(
                f"solve: {spec.solve} works for a head of one layer, and this one has {layers}; "
                "remove solve and write epochs: 10"
            )
    return problems


def _beside(phase: Phase, groups: LayerGroups, layout: Layout) -> str:
    """Return a sentence on the layers beside which a phase has adapters, and those without."""
    have = {f"{path}.weight" for path in phase.adapters.layers} if phase.adapters else set()
    there = {n for g in groups.groups if g.name in phase.groups for n in g.parameters}
    left = layout.weights & there - have - set(phase.parameters)
    text = f"phase {phase.name}: adapters stand beside {len(have)} layers"
    return f"{text}; {len(left)} other weights in the same groups have none" if left else text


def _adapter_problems(spec: PhaseSpec, adapters: Adapters | None) -> list[str]:
    """Return what does not go with adapters, or only with them."""
    if adapters is None:
        return ["keep_adapters: there are none in this phase; remove it"] * spec.keep_adapters
    if spec.l2_sp:
        return ["l2_sp pulls weights that adapters leave as they are; remove it"]
    return []


def _feature_problems(phase: Phase, alone: bool) -> list[str]:
    """Return what asks for features that cannot be kept, or is for them; in one phase of
    `gradual`, not `alone`, the latter may be meant for the others."""
    spec, never = phase.spec, never_cached(phase)
    if never is None:
        return []
    wanted = "solve: lbfgs" if spec.solve else "features: cached"
    if spec.solve or spec.features == "cached":
        because, remedy = never
        return [f"phase {phase.name}: {wanted} is not possible, because {because}; {remedy}"]
    idle = [key for key, default in FOR_FEATURES.items() if alone and getattr(spec, key) != default]
    return [
        f"phase {phase.name}: {key} has no effect, because {never[0]}; remove it" for key in idle
    ]


def _kept_problems(
    phases: Sequence[Phase], groups: LayerGroups, layout: Layout, place: str
) -> list[str]:
    """Return why adapters that are kept would not fit the backbone as its library loads it."""
    kept = [phase for phase in phases if phase.spec.keep_adapters]
    if not kept:
        return []
    head, where = head_parameters(groups, layout), kept[0].spec.place or f"{place}: {kept[0].name}"
    before = {name for phase in phases[: kept[0].index - 1] for name in phase.parameters}
    if any(phase.spec.reestimate_norms for phase in phases):
        return [f"{where}: keep_adapters: reestimate_norms changes what they stand on; drop one"]
    if phases[-1] is kept[0] and before <= head:
        return []
    return [
        f"{where}: keep_adapters: the adapters of the last phase are kept, on a backbone of which "
        "the phases before train the head alone; merge them here"
    ]


def _rate_problems(
    spec: PhaseSpec, names: Collection[str], groups: LayerGroups, layout: Layout
) -> list[str]:
    """Return the rules of `lrs` that set nobody's rate; the first rule that matches wins."""
    left = set(names)
    problems = []
    for selector, _ in spec.lrs:
        try:
            chosen = set(select(selector, groups, layout))
        except SelectorError as error:
            problems.append(f"lrs: {error}")
            continue
        if chosen.isdisjoint(left):
            why = "is covered by the rules before it" if chosen & set(names) else "does not train"
            problems.append(f"lrs: {selector!r} {why} in this phase; remove it")
        left -= chosen
    return problems


def _repeats(spec: PhaseSpec, names: Collection[str], before: Phase) -> list[str]:
    """Return a problem if the phase is the one before it over again."""
    same = replace(spec, name=None, train="") == replace(before.spec, name=None, train="")
    if not same or tuple(names) != before.parameters:
        return []
    length = f"epochs: {2 * spec.epochs:g}" if spec.epochs else f"steps: {2 * (spec.steps or 0)}"
    remedy = "remove it" if spec.solve else f"remove it, or write {length} in the one before"
    return [f"this phase trains the same as the one before, with the same settings; {remedy}"]
