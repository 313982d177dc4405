"""What is wrong with a recipe's phases on a network, or worth a note; before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from hf_transfer.planning.groups import LayerGroups
from hf_transfer.planning.phase import Phase, span
from hf_transfer.planning.selection import SelectorError, select
from hf_transfer.recipe.phase_specs import UNKNOWN_LR
from hf_transfer.recipe.specs import PhaseSpec

FOR_FEATURES = {"views": 1, "feature_precision": "fp32"}  # what is for kept features: the default
PROBE = "{train: head, epochs: 5, lr: 1e-3}"


def never_cached(phase: Phase) -> tuple[str, str] | None:
    """Return why the features of a phase cannot be kept on any data, and what would mend it."""
    spec = phase.spec
    if spec.features == "live":
        return "the recipe says so", "remove features: live"
    if not phase.frozen_prefix:
        wanted = "solve: lbfgs and write epochs: 10" if spec.solve else "features: cached"
        return "nothing is frozen below what trains", f"remove {wanted}"
    if spec.pseudo:
        return "images without labels vary in every epoch", "remove pseudo"
    if spec.mixup or spec.cutmix:
        return "images are mixed differently in every epoch", "remove mixup and cutmix"
    if spec.is_augmented and spec.views < 2:
        what = "images vary from epoch to epoch; views: 4 would keep four variations of each"
        return what, "write that, or remove augment"
    return None


# --- what is wrong ---------------------------------------------------------------------------


def phase_problems(phase: Phase, before: Sequence[Phase], alone: bool) -> list[str]:
    """Return what is wrong with a phase after those `before` it, a sentence each.

    `alone`: it is no part of `gradual`.
    """
    found = [
        *_head_problems(phase, before),
        *_pseudo_problems(phase, before),
        *_rate_problems(phase),
        *_solve_problems(phase),
        *_adapter_problems(phase),
        *_feature_problems(phase, alone),
    ]
    return found or (_repeats(phase, before[-1]) if before else [])


def recipe_problems(phases: Sequence[Phase], groups: LayerGroups, place: str) -> list[str]:
    """Return what is wrong with all phases together; `place` is the recipe's in messages."""
    layout = groups.layout
    trained = {name for phase in phases for name in phase.parameters}
    new = () if layout.head_kept else layout.head
    cold = [name for name in new if name not in trained and name not in layout.unused]
    problems = []
    if cold:
        problems.append(
            f"{place}: the new head never trains ({cold[0]}); add a phase such as {PROBE}"
        )
    return [*problems, *_kept_problems(phases, groups, place)]


def _head_problems(phase: Phase, before: Sequence[Phase]) -> Iterator[str]:
    """Yield that the backbone trains under a new head that has not trained before."""
    layout, spec = phase.layout, phase.spec
    if layout.head_kept or layout.random or spec.cold_head or not _below_head(phase):
        return
    new = set(layout.head).difference(layout.unused, *(past.parameters for past in before))
    if not new:
        return
    what = "the backbone trains under a head that is not trained yet"
    if not new.isdisjoint(phase.parameters):
        what = (
            "backbone and new head start to train together, and the head's first steps would "
            "spoil the backbone"
        )
    yield f"{what}; put {PROBE} before it, or write cold_head: true if you mean it"


def _below_head(phase: Phase) -> list[str]:
    """Return what trains below the head, except first layers that must."""
    aside = {*phase.network.head, *phase.layout.refitted}
    return [name for name in phase.parameters if name not in aside]


def _pseudo_problems(phase: Phase, before: Sequence[Phase]) -> Iterator[str]:
    """Yield that a phase would learn from the answers of a head that has not learned any."""
    layout = phase.layout
    learned = {name for past in before for name in past.parameters}
    if phase.spec.pseudo and not layout.head_kept and learned.isdisjoint(layout.head):
        yield (
            "pseudo learns from the network's own answers, and its head has not learned any yet; "
            "put {train: head, solve: lbfgs} before it"
        )


def _rate_problems(phase: Phase) -> Iterator[str]:
    """Yield the rules of `lrs` that set nobody's rate; the first rule that matches wins."""
    left = set(phase.parameters)
    for selector, _ in phase.spec.lrs:
        try:
            chosen = set(select(selector, phase.network))
        except SelectorError as error:
            yield f"lrs: {error}"
            continue
        if chosen.isdisjoint(left):
            covered = not chosen.isdisjoint(phase.parameters)
            why = "is covered by the rules before it" if covered else "does not train"
            yield f"lrs: {selector!r} {why} in this phase; remove it"
        left -= chosen


def _solve_problems(phase: Phase) -> Iterator[str]:
    """Yield what a solved head, or a pull towards the pretrained weights, cannot be used for."""
    spec, below = phase.spec, _below_head(phase)
    if spec.l2_sp and not below:
        yield "l2_sp pulls the backbone, and only the head trains here; remove it"
    if not spec.solve:
        return
    layers = len(phase.layout.weights.intersection(phase.parameters))
    if below:
        yield f"solve: {spec.solve} is for the head alone; write train: head"
    elif layers != 1:
        yield (
            f"solve: {spec.solve} works for a head of one layer, and this one has {layers}; "
            "remove solve and write epochs: 10"
        )


def _adapter_problems(phase: Phase) -> Iterator[str]:
    """Yield what does not go with adapters, or only with them."""
    if phase.adapters is None and phase.spec.keep_adapters:
        yield "keep_adapters: there are none in this phase; remove it"
    if phase.adapters is not None and phase.spec.l2_sp:
        yield "l2_sp pulls weights that adapters leave as they are; remove it"


def _feature_problems(phase: Phase, alone: bool) -> Iterator[str]:
    """Yield what asks for features that cannot be kept, or is for them; in one phase of `gradual`,
    not `alone`, the latter may be meant for the others."""
    spec, never = phase.spec, never_cached(phase)
    if never is None:
        return
    because, remedy = never
    if spec.solve or spec.features == "cached":
        wanted = "solve: lbfgs" if spec.solve else "features: cached"
        yield f"phase {phase.name}: {wanted} is not possible, because {because}; {remedy}"
    elif alone:
        for key, default in FOR_FEATURES.items():
            if getattr(spec, key) != default:
                yield f"phase {phase.name}: {key} has no effect, because {because}; remove it"


def _repeats(phase: Phase, before: Phase) -> list[str]:
    """Return a problem if the phase is the one before it over again."""

    def settings(spec: PhaseSpec) -> PhaseSpec:
        return replace(spec, name=None, train="head")

    spec = phase.spec
    same = settings(spec) == settings(before.spec) and phase.parameters == before.parameters
    if not same:
        return []
    length = f"epochs: {2 * spec.epochs:g}" if spec.epochs else f"steps: {2 * (spec.steps or 0)}"
    remedy = "remove it" if spec.solve else f"remove it, or write {length} in the one before"
    return [f"this phase trains the same as the one before, with the same settings; {remedy}"]


def _kept_problems(phases: Sequence[Phase], groups: LayerGroups, place: str) -> list[str]:
    """Return why adapters that are kept would not fit the backbone as its library loads it."""
    kept = next((phase for phase in phases if phase.spec.keep_adapters), None)
    if kept is None:
        return []
    where = kept.spec.place or f"{place}: {kept.name}"
    before = {name for phase in phases[: kept.index - 1] for name in phase.parameters}
    if any(phase.spec.reestimate_norms for phase in phases):
        return [
            f"{where}: keep_adapters: reestimate_norms changes the backbone that the adapters "
            "belong to; remove one of them"
        ]
    if phases[-1] is kept and before <= groups.head:
        return []
    return [
        f"{where}: keep_adapters: only the last phase's adapters can be kept, and only if the "
        "phases before it train nothing but the head; remove keep_adapters to merge them"
    ]


# --- what is worth a note --------------------------------------------------------------------


def phase_notes(phases: Sequence[Phase], groups: LayerGroups) -> tuple[str, ...]:
    """Return what is allowed but perhaps not meant, a sentence each.

    Groups that never train though lower ones do, and parameters that the network never uses.
    """
    layout = groups.layout
    notes = _hole(phases, groups)
    if layout.refitted and phases:
        where = [phase.name for phase in phases if {*layout.refitted} <= {*phase.parameters}]
        trains = f"it trains in phase {where[0]}" if where else "it never trains"
        channels = layout.image.get("channels")
        notes.append(
            f"{layout.refitted[0]} was converted from pretrained weights to {channels} channels; "
            f"{trains}"
        )
    notes += [_beside(phase) for phase in phases if phase.adapters]
    notes += [
        f"phase {phase.name}: lr: auto is found by a range test before the phase; {UNKNOWN_LR:g} "
        "stands for it here"
        for phase in phases
        if phase.spec.lr == "auto"
    ]
    notes += [
        f"phase {phase.name} starts gently from the solved head: {' and '.join(phase.gentle)}"
        for before, phase in zip(phases, phases[1:], strict=False)
        if before.spec.solve and phase.gentle
    ]
    if layout.unused:
        first = f"{layout.unused[0]}{', …' * (len(layout.unused) > 1)}"
        notes.append(f"kept frozen, because the network never uses them: {first}")
    return tuple(notes)


def _hole(phases: Sequence[Phase], groups: LayerGroups) -> list[str]:
    """Return a note on groups that never train though a lower one does."""
    trained = {name for phase in phases for name in phase.groups}
    names: Collection[str] = groups.names
    if any(phase.adapters for phase in phases):  # beside a group without weights none can stand
        weights = groups.layout.weights
        light = {g.name for g in groups.groups if weights.isdisjoint(g.parameters)}
        names = [name for name in names if name in trained or name not in light]
    lowest = next((name for name in names if name in trained), None)
    if lowest is None:
        return []
    above = list(names)[list(names).index(lowest) :]
    holes = [name for name in above if name not in trained]
    verb = "trains" if len(holes) == 1 else "train"
    return [f"{span(holes, groups)} never {verb}, though {lowest} below does"] if holes else []


def _beside(phase: Phase) -> str:
    """Return a sentence on the layers beside which a phase has adapters, and those without."""
    have = {f"{path}.weight" for path in phase.adapters.layers} if phase.adapters else set()
    there = {n for g in phase.network.groups if g.name in phase.groups for n in g.parameters}
    left = phase.layout.weights & there - have - set(phase.parameters)
    text = f"phase {phase.name}: {len(have)} layers have adapters"
    return f"{text}; {len(left)} other weights in the same groups have none" if left else text
