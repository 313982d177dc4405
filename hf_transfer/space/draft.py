"""The plan that a visitor makes by clicking: what is frozen when, rates, lengths, cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_transfer.backbones.origins import check_id
from hf_transfer.base.errors import UserError
from hf_transfer.planning.plan import Plan
from hf_transfer.plans import plans_of
from hf_transfer.recipe.load import dump_recipe, load_recipe, parse_phase, parse_recipe
from hf_transfer.recipe.phase_specs import PhaseSpec
from hf_transfer.recipe.specs import DataSpec, Recipe
from hf_transfer.space.limits import Limits, Refused

STARTS = {  # shipped recipe: what a visitor reads
    "exact_head": "Solve a new head (seconds)",
    "feature_extraction": "Train a new head",
    "lp_ft": "Head first, then everything",
    "gradual": "Unfreeze stage by stage",
    "scratch": "From scratch, to compare",
}
AUGMENTS = ("none", "light", "standard")


@dataclass
class Draft:
    """A recipe that is being made, with its plan, or in `problem` why there is none."""

    title: str
    recipe: Recipe
    limits: Limits
    plan: Plan | None = None
    problem: str = ""
    chosen: tuple[object, ...] = ()  # network, start and size as the page showed them, None for any

    @property
    def stages(self) -> tuple[str, ...]:
        """The network's stages, input to output, the head last."""
        return self.plan.groups.stages if self.plan else ()

    def trained(self, phase: int) -> dict[str, float]:
        """Return for each stage which share of its groups trains in a phase, 0..1."""
        if self.plan is None:
            return {}
        on = set(self.plan.phases[phase].phase.groups)
        groups = self.plan.groups.groups
        return {
            stage: sum(g.name in on for g in groups if g.stage == stage)
            / sum(g.stage == stage for g in groups)
            for stage in self.stages
        }

    def sizes(self) -> dict[str, int]:
        """Return the number of parameters in each stage."""
        groups = self.plan.groups.grain("stages") if self.plan else None
        return {group.name: group.size for group in groups.groups} if groups else {}

    def change(self, asked: Mapping[str, str]) -> None:
        """Change the plan as a click or an entry says: toggle, rate, epochs, augment, add, remove.

        What cannot be is told in `problem`, and the recipe stays as it was.
        """
        kind, at = asked.get("act", ""), _whole(asked.get("phase", "0"))
        before = self.recipe
        try:
            phases = list(self._phases())
            if kind == "add":
                if len(phases) >= self.limits.phases:
                    raise Refused(f"The page trains in up to {self.limits.phases} phases.")
                phases.append(_added(phases[-1], len(phases)))
            elif not 0 <= at < len(phases):
                raise Refused("This phase is no longer there.")
            elif kind == "remove":
                if len(phases) == 1:
                    raise Refused("A plan needs at least one phase.")
                if at == 0 and {s for s, share in self.trained(1).items() if share} != {"head"}:
                    phases[1] = dataclasses.replace(phases[1], cold_head=True)
                del phases[at]
            else:
                phases[at] = self._changed(phases[at], kind, at, asked)
            self.recipe = dataclasses.replace(self.recipe, phases=tuple(phases))
            self.make()
            if self.plan is None:
                raise Refused(self.problem)
        except UserError as error:
            self.recipe = before
            self.make()
            self.problem = str(error)

    def check_chosen(self, now: tuple[object, ...]) -> None:
        """Raise Refused if another network, start or size is chosen than this plan was made for."""
        if any(a is not None and a != b for a, b in zip(self.chosen, now, strict=False)):
            raise Refused(
                "This plan was made before you changed the network, the start or the image size. "
                "Make the plan again, or choose what you had."
            )

    def _phases(self) -> tuple[PhaseSpec, ...]:
        """Return the recipe's phases, gradual ones taken apart."""
        if self.plan is None:
            raise Refused(self.problem or "There is no plan yet.")
        return tuple(planned.phase.spec for planned in self.plan.phases)

    def _changed(self, spec: PhaseSpec, kind: str, at: int, asked: Mapping[str, str]) -> PhaseSpec:
        value = asked.get("value", "").strip()
        if kind == "toggle":
            on = {stage for stage, share in self.trained(at).items() if share}
            on ^= {asked.get("stage", "")} & set(self.stages)
            if not on:
                raise Refused("A phase must train something.")
            alone = on == {"head"}
            found = dataclasses.replace(spec, train=_selector(on, self.stages), name=None)
            if found.solve and not alone:
                found = PhaseSpec(train=found.train, epochs=5, lr=1e-3)
            first = at == 0 and not alone and self.recipe.pretrained
            return dataclasses.replace(found, cold_head=found.cold_head or first)
        if kind == "rate":
            return _with(spec, lr=_number(value, "A rate", 1e-7, 1.0), lrs=())
        if kind == "epochs":
            epochs = _number(value, "The number of epochs", 1, self.limits.epochs)
            return _with(spec, epochs=epochs, steps=None)
        if kind == "augment":
            if value not in AUGMENTS:
                raise Refused(f"Augmentation is one of {', '.join(AUGMENTS)}.")
            (phase,) = parse_recipe(
                f"phases: [{{train: head, epochs: 1, augment: {value}}}]", "plan.yaml"
            ).phases
            return _with(spec, augment=phase.augment)
        raise Refused("This page does not know that change.")

    def make(self) -> None:
        """Make the plan of the recipe, or note why there is none."""
        self.plan, self.problem = None, ""
        try:
            (self.plan,) = plans_of(self.recipe)
            check_length(self.plan, self.limits)
        except UserError as error:
            self.problem = str(error)

    @property
    def refusal(self) -> str:
        """Why this plan is not trained here, "" where it is."""
        if self.plan is None:
            return self.problem
        try:
            check_cost(self.plan, self.limits)
        except Refused as error:
            return str(error)
        return ""

    def text(self) -> str:
        """Return the recipe as YAML."""
        return dump_recipe(dataclasses.replace(self.recipe, name=self.title))


def new_draft(data: Path, backbone: str, start: str, image_px: int | None, limits: Limits) -> Draft:
    """Return a draft that begins with a shipped recipe. Raises UserError."""
    if start not in STARTS:
        raise Refused(f"This page starts from one of {', '.join(STARTS)}.")
    if not backbone:
        raise Refused("Choose a network first.")
    if image_px is not None and not 8 <= image_px <= limits.image_px:
        raise Refused(f"The page trains on images of 8 to {limits.image_px} px.")
    check_id(backbone)
    spec = DataSpec(path=str(data), image_size=image_px, max_bad=0.0)
    recipe = dataclasses.replace(load_recipe(start), data=spec, backbone=backbone)
    return draft_of(STARTS[start].partition(" (")[0], recipe, limits)


def draft_of(title: str, recipe: Recipe, limits: Limits) -> Draft:
    """Return a draft of a recipe with its plan."""
    draft = Draft(title, recipe, limits)
    draft.make()
    return draft


def advised_draft(text: str, data: Path, backbone: str, limits: Limits) -> Draft:
    """Return a draft of the recipe that `advise` wrote. Raises UserError."""
    recipe = parse_recipe(text, "advice.yaml")
    spec = dataclasses.replace(recipe.data, path=str(data))
    recipe = dataclasses.replace(recipe, data=spec, backbone=backbone)
    return draft_of("As advised", recipe, limits)


def check_length(plan: Plan, limits: Limits) -> None:
    """Raise Refused for a plan of too many phases or epochs."""
    for planned in plan.phases:
        if planned.steps > limits.steps:
            raise Refused(
                f"A phase takes up to {limits.steps:,} steps on this page; phase "
                f"{planned.phase.index} asks for {planned.steps:,}. Train fewer epochs."
            )


def check_cost(plan: Plan, limits: Limits) -> None:
    """Raise Refused for a plan that takes longer than the page trains for one visitor."""
    if plan.seconds is not None and plan.seconds > limits.planned_seconds:
        raise Refused(
            f"This plan takes about {plan.seconds / 60:.0f} minutes, and the page trains up to "
            f"{limits.planned_seconds / 60:.0f} minutes for each visitor. Train fewer epochs, "
            "freeze more, or choose smaller images or a smaller network."
        )


def _selector(on: set[str], stages: tuple[str, ...]) -> str | tuple[str, ...]:
    ordered = [stage for stage in stages if stage in on]
    if len(ordered) == len(stages):
        return "all"
    if ordered == ["head"]:
        return "head"
    if ordered == list(stages[-len(ordered) :]):
        return f"from {ordered[0]}"
    return tuple(ordered)


def _added(last: PhaseSpec, count: int) -> PhaseSpec:
    lr = 1e-4 if last.solve else last.head_lr / 10
    phase = parse_phase({"train": "all", "epochs": 3, "lr": lr, "layer_decay": 0.75})
    assert isinstance(phase, PhaseSpec)
    return phase


def _with(spec: PhaseSpec, **changes: object) -> PhaseSpec:
    if spec.solve:
        raise Refused("A head that is solved for has no rate, no epochs and no augmentation.")
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def _number(text: str, what: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise Refused(f"{what} must be from {low:g} to {high:g} here, got {text[:20]!r}.")
    return value


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 4 else -1
