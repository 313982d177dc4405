"""All that is wrong with a phase on this network, found before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from hf_transfer.planning.adapters import Adapters
from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.layout import Layout
from hf_transfer.planning.phase import Phase, span
from hf_transfer.planning.selection import SelectorError, head_parameters, select
from hf_transfer.recipe.specs import Augment, PhaseSpec

FOR_FEATURES = {"views": 1, "feature_precision": "fp32"}  # what is for kept features: the default


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
