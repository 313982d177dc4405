"""Plans of a recipe before anything is loaded: its source's first, if it has one, then its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hf_transfer.base import launch
from hf_transfer.base.boundary import printable
from hf_transfer.base.cache import room
from hf_transfer.base.errors import RecipeError, UserError, data_of
from hf_transfer.base.files import expanded
from hf_transfer.base.machine import bf16_time
from hf_transfer.base.signatures import checked
from hf_transfer.data.beside import check_apart, count_beside
from hf_transfer.data.findings import NO_LABELLED_IMAGE, public_name
from hf_transfer.data.scan import check_validation
from hf_transfer.data.sources import Scan, scan
from hf_transfer.planning.cost import Speed, measure_speed
from hf_transfer.planning.data_checks import Counts
from hf_transfer.planning.groups import LayerGroups, group_layers
from hf_transfer.planning.layout import Layout
from hf_transfer.planning.phases import make_phases
from hf_transfer.planning.plan import Machine, Plan, make_plan
from hf_transfer.planning.plan_text import format_plan
from hf_transfer.planning.recorded import recorded_layout
from hf_transfer.recipe.load import asked, source_recipe
from hf_transfer.recipe.specs import CompareSpec, HeadSpec, LettersSpec, Recipe
from hf_transfer.recipe.tasks import PROBED, labels_of

LEFT_OUT = (
    "the validation and test images of {data} are left out of these, by content and by their "
    "group; after each epoch a linear probe of its labelled images says what the features are worth"
)


BESIDE = (
    "phases with pseudo also learn from {count:,} images without labels, where the network is sure "
    "of its answer; one that makes validation worse is undone"
)

FEW = 3  # names in a note


@checked
def plan(
    recipe: str | Path | Recipe,
    *,
    data: str | Path | None = None,
    backbone: str | Path | None = None,
    unlabelled: str | Path | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    processes: int = 1,
) -> tuple[Plan, ...]:
    """Return what a recipe would do with this data and backbone, and train nothing.

    `recipe` is a shipped recipe's name, a path, or a Recipe; `data`, `backbone` and `seed` take the
    place of its own, and `overrides` are settings such as "phases.0.lr=1e-4". `unlabelled` is a
    folder of images for a recipe that learns from them first. Costs are those of so many
    `processes`. A recipe with a source task has two plans. Raises UserError.
    """
    if processes < 1:
        raise UserError(f"processes must be at least 1, got {processes}")
    wanted = asked(recipe, data, backbone, seed, overrides, True, unlabelled)  # no code is run here
    return tuple(plans_of(wanted, processes))


def plans_of(recipe: Recipe, processes: int = 1) -> Iterator[Plan]:
    """Yield the plans of a recipe in the order in which they are run.

    Torch is imported only for a backbone that is not recorded. Raises UserError for what cannot be
    planned.
    """
    check_apart(recipe)
    speed, source = measure_speed(), recipe.source
    drawn = recipe
    if recipe.weights is not None:
        from hf_transfer.backbones.origins import check_weights_file

        check_weights_file(expanded(recipe.weights))
    if source is not None:
        first = source_recipe(recipe)
        if source.letters is not None:
            first = _on(first, "drawn letters")
            yield _plan(first, first, _letters(source.letters), speed, processes)
        else:
            probed = _labelled(recipe) if source.pretext else 0
            with data_of(first.name):
                planned = _plan_on_data(first, first, speed, processes, probed)
            _check_learns(planned)
            note = LEFT_OUT.format(data=recipe.data.path) if source.pretext else None
            yield dataclasses.replace(planned, notes=(*planned.notes, *([note] if note else ())))
        # The recipe's own network is known, its weights are still to be trained.
        drawn = dataclasses.replace(
            recipe,
            backbone=source.backbone,
            pretrained=False,
            head=HeadSpec(recipe.head.replace),
            source=None,
        )
    if recipe.compare is not None:
        digits = _on(recipe, "scikit-learn's digits")
        yield _plan(digits, drawn, _digits(recipe.compare), speed, processes)
    else:
        yield _plan_on_data(recipe, drawn, speed, processes)


def _check_learns(source: Plan) -> None:
    """Raise RecipeError where a source trains a head alone, which its target does not take over."""
    head = set(source.groups.layout.head)
    if all(head.issuperset(one.phase.parameters) for one in source.phases):
        raise RecipeError(
            [f"{source.recipe.name}: only the head trains, and it is left behind; train more of it"]
        )


def plans_text(recipe: Recipe, processes: int, width: int) -> str:
    """Return the plans of a recipe as text, folded to `width` columns."""
    return "\n\n".join(format_plan(plan, width) for plan in plans_of(recipe, processes))


def _plan_on_data(
    recipe: Recipe, drawn: Recipe, speed: Speed, processes: int, probed: int = 0
) -> Plan:
    found = scan(recipe.data, recipe.seed, recipe.task)
    if recipe.folds == 1:
        check_validation(found, found, recipe.data)
    planned = _plan(recipe, drawn, found.counts, speed, processes, found.images, probed)
    notes = [_not_used(found)] if found.ignored else []
    if count := count_beside(recipe):
        notes.append(BESIDE.format(count=count))
    return dataclasses.replace(planned, notes=(*planned.notes, *notes))


def _not_used(found: Scan) -> str:
    """Return what to say of what lies among the images and is none of them, folders first."""
    names = sorted(found.ignored, key=lambda name: not name.endswith("/"))
    few = ", ".join(printable(public_name(name)) for name in names[:FEW])
    more = f" and {len(names) - FEW:,} more" if len(names) > FEW else ""
    return f"not used: {few}{more}" + (f" ({NO_LABELLED_IMAGE})" if found.table is None else "")


def _labelled(recipe: Recipe) -> int:
    """Return how many labelled images a pretext is probed with."""
    images = scan(recipe.data, recipe.seed, recipe.task).images
    return sum(min(images.get(split, 0), PROBED) for split in ("train", "validation"))


def _plan(
    recipe: Recipe,
    drawn: Recipe,
    counts: Counts,
    speed: Speed,
    processes: int,
    images: Mapping[str, int] | None = None,
    probed: int = 0,
) -> Plan:
    """Return a plan of `recipe` on the network that `drawn` names."""
    labels = tuple(dict.fromkeys(label for classes in counts.values() for label in classes))
    layout = _layout(drawn, len(labels_of(drawn.task, labels)))
    layout = dataclasses.replace(layout, random=not (recipe.pretrained or recipe.source))
    groups = group_layers(layout)
    if recipe.data.image_size:
        groups = groups.at(recipe.data.image_size)
    phases = make_phases(recipe.phases, groups, recipe.name)
    machine = Machine(speed, processes, launch.shards(), room(), bf16_time())
    return make_plan(recipe, groups, phases, counts, machine, images, probed)


def groups_of(backbone_id: str, labels: int = 1000) -> LayerGroups:
    """Return the groups of a backbone with a head for so many labels; nothing is downloaded that is
    recorded. Raises UserError for what is no backbone."""
    layout = recorded_layout(backbone_id, labels)
    if layout is None:
        from hf_transfer.backbones.origins import check_id

        check_id(backbone_id)  # before torch is imported, which takes seconds
        from hf_transfer.backbones.layouts import layout_of

        layout = layout_of(backbone_id, labels)
    return group_layers(layout)


def _layout(recipe: Recipe, labels: int) -> Layout:
    layout = None
    if recipe.backbone:  # at the images' size, or at its own and from there by their area
        layout = recorded_layout(recipe.backbone, labels, recipe.data.image_size)
        layout = layout or recorded_layout(recipe.backbone, labels)
    if layout is None or recipe.head.replace != 1 or recipe.head.keep or recipe.data.channels:
        from hf_transfer.backbones.origins import check_id

        if recipe.backbone:
            check_id(recipe.backbone)  # before torch is imported, which takes seconds
        from hf_transfer.backbones.layouts import planned_layout

        layout = planned_layout(recipe, labels)
    return layout


def _on(recipe: Recipe, what: str) -> Recipe:
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, path=what))


def _letters(spec: LettersSpec) -> Counts:
    from hf_transfer.data.letters import LETTERS

    return {"train": dict.fromkeys(LETTERS, spec.images // len(LETTERS))}


def _digits(spec: CompareSpec) -> Counts:
    return {"train": dict.fromkeys("0123456789", max(spec.per_class))}
