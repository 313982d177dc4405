"""Phases: selectors on hand-made networks, gradual expansion, and what is refused."""

import re
from dataclasses import replace

import pytest

from hf_transfer.base.errors import RecipeError
from hf_transfer.planning.groups import Group, LayerGroups
from hf_transfer.planning.layout import Layout
from hf_transfer.planning.phase import span
from hf_transfer.planning.phase_checks import phase_notes
from hf_transfer.planning.phases import make_phases
from hf_transfer.planning.selection import SelectorError, parts, select
from hf_transfer.recipe.specs import AUGMENTS, GradualSpec, PhaseSpec


def network(
    blocks: dict[str, str],
    *,
    light: tuple[str, ...] = (),
    head: tuple[str, ...] = ("fc",),
    new: bool = True,
    unused: tuple[str, ...] = (),
) -> LayerGroups:
    """Return a network of groups (name -> stage), each a convolution with its norm; `light` groups
    are nothing but a norm; `head` are dense layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    groups = []
    for name, stage in blocks.items():
        own = {f"{name}.norm.weight": (8,), f"{name}.norm.bias": (8,)}
        if name not in light:
            own = {f"{name}.conv.weight": (8, 8, 3, 3), **own}
        if name == "stem" and unused:
            own |= dict.fromkeys(unused, (1, 8))
        shapes |= own
        groups.append(Group(name, stage, tuple(own), 0))
    top = {f"{n}.{k}": (5, 8) if k == "weight" else (5,) for n in head for k in ("weight", "bias")}
    shapes |= top
    groups.append(Group("head", "head", tuple(top), 0))
    layout = Layout(
        parameters=tuple(shapes.items()),
        unused=unused,
        head=tuple(top) if new else (),
        norms=tuple(f"{name}.norm" for name in blocks),
    )
    return LayerGroups(tuple(groups), layout)


CNN = {
    "stem": "stem",
    **{f"layer{stage}.{block}": f"layer{stage}" for stage in (1, 2, 3) for block in (0, 1)},
}
VIT = {"stem": "stem", **{f"blocks.{i}": f"blocks.{i}" for i in range(4)}, "norm": "norm"}
LONG = {"stem": "stem", **{f"b{i:02}": f"s{i // 20}" for i in range(60)}}


def chosen(selector, blocks=CNN, **options) -> tuple[str, ...]:
    """Return the names of the groups of which a selector selects everything."""
    groups = network(blocks, **options)
    names = set(select(selector, groups))
    return tuple(group.name for group in groups.groups if names.issuperset(group.parameters))


# --- selectors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("head", ["head"]),
        ("all", [*CNN, "head"]),
        ("last 1 stage", ["layer3.0", "layer3.1", "head"]),
        ("last 2 stages", ["layer2.0", "layer2.1", "layer3.0", "layer3.1", "head"]),
        ("last 4 stages", [*CNN, "head"]),
        ("last 1 block", ["layer3.1", "head"]),
        ("last 3 blocks", ["layer2.1", "layer3.0", "layer3.1", "head"]),
        ("last 3 groups", ["layer2.1", "layer3.0", "layer3.1", "head"]),
        ("first 1 stage", ["stem"]),
        ("first 2 stages", ["stem", "layer1.0", "layer1.1"]),
        ("first 2 blocks", ["stem", "layer1.0"]),
        ("last 50%", ["layer2.0", "layer2.1", "layer3.0", "layer3.1", "head"]),  # 3.5 of 7: 4
        ("last 100%", [*CNN, "head"]),
        ("last 1%", ["layer3.1", "head"]),
        ("first 30 %", ["stem", "layer1.0"]),
        ("from layer3", ["layer3.0", "layer3.1", "head"]),
        ("from layer3.1", ["layer3.1", "head"]),
        ("from head", ["head"]),
        ("layer2", ["layer2.0", "layer2.1"]),
        ("layer2.1", ["layer2.1"]),
        ("layer2.*", ["layer2.0", "layer2.1"]),
        ("*.1", ["layer1.1", "layer2.1", "layer3.1"]),
        ("fc", ["head"]),
        ("not stem", [*CNN, "head"][1:]),
        (["head", "stem"], ["stem", "head"]),
        (["all", "not first 2 stages"], ["layer2.0", "layer2.1", "layer3.0", "layer3.1", "head"]),
        (["not layer1", "not layer2"], ["stem", "layer3.0", "layer3.1", "head"]),
        ("  last   1   stage ", ["layer3.0", "layer3.1", "head"]),
    ],
)
def test_a_selector_selects_groups(selector, expected):
    assert list(chosen(selector)) == expected


def test_kinds_and_patterns_select_parameters_within_groups():
    groups = network(CNN)
    norms = select("norms", groups)
    assert len(norms) == 2 * len(CNN)
    assert all(".norm." in name for name in norms)
    assert all(name.endswith("bias") for name in select("biases", groups))
    assert "fc.bias" in select("biases", groups)
    assert select("layer1.0.conv", groups) == ("layer1.0.conv.weight",)
    assert select("*.conv.weight", groups) == tuple(f"{n}.conv.weight" for n in CNN)
    assert select(["head", "not fc.bias"], groups) == ("fc.weight",)


def test_names_come_in_execution_order_whatever_the_order_of_the_selectors():
    groups = network(CNN)
    order = [name for name, _ in groups.layout.parameters]
    names = select(["head", "layer3", "stem"], groups)
    assert list(names) == [name for name in order if name in names]


def test_a_unit_of_nothing_but_norms_is_not_counted():
    assert chosen("last 1 stage", VIT, light=("norm",)) == ("blocks.3", "norm", "head")
    assert chosen("last 2 blocks", VIT, light=("norm",)) == ("blocks.2", "blocks.3", "norm", "head")
    assert chosen("first 5 stages", VIT, light=("norm",))[-1] == "norm"
    assert chosen("first 1 stage", VIT, light=("stem",)) == ("stem", "blocks.0")


def test_units_hold_every_parameter_of_the_backbone_once():
    for blocks, light in ((CNN, ()), (VIT, ("norm",)), (LONG, ("stem", "b30"))):
        groups = network(blocks, light=light)
        below = [name for group in groups.groups[:-1] for name in group.parameters]
        for grain in ("stages", "blocks"):
            assert [name for part in parts(grain, groups) for name in part] == below


def test_a_head_of_several_layers_is_selected_whole():
    groups = network(CNN, head=("fc1", "fc2"))
    assert set(select("head", groups)) == {
        "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias",
    }  # fmt: skip


def test_a_head_that_the_checkpoint_brought_is_still_the_head():
    assert chosen("head", new=False) == ("head",)
    assert chosen("last 1 block", new=False) == ("layer3.1", "head")


def test_what_the_network_never_uses_is_never_selected():
    groups = network(CNN, unused=("mask_token",))
    assert "mask_token" not in select("all", groups)
    assert "mask_token" not in select("stem", groups)
    with pytest.raises(SelectorError, match="never uses"):
        select("mask_token", groups)


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        ("layer9", "'layer9' matches nothing in this backbone; nearest: layer"),
        ("heads", "nearest: head"),
        ("block.*", "its stages: stem, layer1, layer2, layer3, head; selectors: head, all"),
        ("layr2.*", "nearest: layer2"),
        ("from layer9", "'layer9' matches nothing"),
        ("last 9 stages", "this backbone has 1 to 4 stages below the head; write last 4 stages"),
        ("last 0 blocks", "this backbone has 1 to 7 blocks"),
        ("first 8 blocks", "write first 7 blocks or all"),
        ("last 0%", "a share must be above 0%"),
        ("last 101%", "at most 100%"),
        ("last two stages", "'last two stages' matches nothing"),
        (["head", "not head"], "leaves nothing to train"),
        (["head", "not layer9"], "'layer9' matches nothing"),
        ("not all", "leaves nothing to train"),
    ],
)
def test_a_selector_that_matches_nothing_names_what_there_is(selector, words):
    groups = network(CNN)
    with pytest.raises(SelectorError) as caught:
        select(selector, groups)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_norms_of_a_network_without_any_are_named_as_such():
    groups = network({"stem": "stem"})
    bare = replace(groups, layout=replace(groups.layout, norms=()))
    with pytest.raises(SelectorError, match="no normalisation"):
        select("norms", bare)


# --- phases ----------------------------------------------------------------------------------

PROBE = PhaseSpec("head", epochs=1)
LIGHT = AUGMENTS["light"]


def made(*specs, blocks=CNN, **options):
    return make_phases(specs, network(blocks, **options), place="a.yaml")


def refused(*specs, blocks=CNN, **options) -> str:
    with pytest.raises(RecipeError) as caught:
        made(*specs, blocks=blocks, **options)
    assert all("\n" not in text for text in caught.value.problems)
    return str(caught.value)


def test_a_phase_knows_its_groups_parameters_and_cut():
    head, top, whole = made(PROBE, PhaseSpec("last 1 stage", epochs=1), PhaseSpec("all", epochs=1))
    assert (head.index, head.name, head.folder) == (1, "head", "phase-1-head")
    assert head.parameters == ("fc.weight", "fc.bias")
    assert (head.groups, head.frozen_prefix) == (("head",), 7)
    assert (top.groups, top.frozen_prefix) == (("layer3.0", "layer3.1", "head"), 5)
    assert (whole.name, whole.frozen_prefix) == ("all", 0)
    assert top.folder == "phase-2-last-1-stage"


def test_names_are_unique_and_fit_for_a_folder():
    phases = made(
        PROBE,
        PhaseSpec("all", epochs=1),
        PhaseSpec("all", epochs=2),
        PhaseSpec("last 50%", epochs=1),
        PhaseSpec("all", epochs=1, name="Über/All ../x"),
        PhaseSpec(["layer1.*", "layer2.0.conv", "layer3.1.norm", "head"], epochs=1),
    )
    assert [phase.name for phase in phases[:5]] == [
        "head", "all", "all-2", "last-50-percent", "ber-all-x",
    ]  # fmt: skip
    assert len(phases[5].name) <= 40
    assert all(set(phase.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for phase in phases)


def test_the_same_recipe_makes_equal_phases():
    specs = (PROBE, PhaseSpec("all", epochs=1, layer_decay=0.5))
    assert made(*specs) == made(*specs)
    assert repr(made(*specs)) == repr(made(*specs))


# --- gradual ---------------------------------------------------------------------------------


def gradual(count=1, grain="stages", **settings):
    step = f"{count}%" if grain == "%" else f"{count} {grain}"
    return GradualSpec(step, **{"epochs": 2, **settings})


def test_gradual_thaws_from_the_head_down_until_everything_trains():
    phases = made(gradual(lr=1.0, lr_drop=0.5))
    assert [phase.name for phase in phases] == [
        "head", "last-1-stage", "last-2-stages", "last-3-stages", "all",
    ]  # fmt: skip
    assert [phase.spec.lr for phase in phases] == [1.0, 0.5, 0.25, 0.125, 0.0625]
    assert set(phases[-1].parameters) == {name for name, _ in network(CNN).layout.parameters}
    for before, after in zip(phases, phases[1:], strict=False):
        assert set(before.parameters) < set(after.parameters)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (gradual(2), ["head", "last-2-stages", "all"]),
        (gradual(9), ["head", "all"]),
        (gradual(3, "blocks"), ["head", "last-3-blocks", "last-6-blocks", "all"]),
        (gradual(50, "%"), ["head", "last-50-percent", "all"]),
        (gradual(1, thaws=2), ["head", "last-1-stage", "last-2-stages"]),
    ],
)
def test_gradual_steps_by_stages_blocks_or_shares(spec, names):
    assert [phase.name for phase in made(spec)] == names


def test_gradual_never_has_two_phases_that_train_the_same():
    phases = made(gradual(5, "%"))
    assert len({phase.parameters for phase in phases}) == len(phases) == 8


def test_gradual_leaves_out_a_head_that_is_trained():
    phases = made(PROBE, gradual(2, lr=1.0, lr_drop=0.1))
    assert [phase.name for phase in phases] == ["head", "last-2-stages", "all"]
    assert [phase.spec.lr for phase in phases[1:]] == [1.0, 0.1]


def test_gradual_drops_both_ends_of_a_geometric_rate():
    phases = made(gradual(4, lr=(0.1, 1.0), lr_drop=0.5, name="thaw"))
    assert phases[1].spec.lr == (0.05, 0.5)
    assert [phase.name for phase in phases] == ["thaw-head", "thaw-all"]


# --- what is refused -------------------------------------------------------------------------


def test_a_new_head_that_thaws_together_with_the_backbone_is_refused():
    message = refused(PhaseSpec("all", epochs=1, place="a.yaml:7"))
    assert message.startswith("a.yaml:7: backbone and new head start to train together")
    assert "put {train: head, epochs: 5, lr: 1e-3} before it" in message
    assert "cold_head: true" in message
    assert "a.yaml: phase 1: " in refused(PhaseSpec("last 1 stage", epochs=1))


def test_a_backbone_under_an_untrained_head_is_refused():
    assert "not trained yet" in refused(PhaseSpec("layer3", epochs=1), PROBE)
    assert "not trained yet" in refused(PhaseSpec("norms", epochs=1), PROBE)


def test_cold_head_a_trained_head_or_a_head_of_the_checkpoint_are_allowed():
    assert made(PhaseSpec("all", epochs=1, cold_head=True))
    assert made(PROBE, PhaseSpec("all", epochs=1))
    assert made(PhaseSpec("all", epochs=1), new=False)
    assert made(PhaseSpec("layer3", epochs=1), new=False)


def test_a_part_of_the_head_is_not_a_trained_head():
    part = PhaseSpec("fc2", epochs=1)
    assert "together" in refused(part, PhaseSpec("all", epochs=1), head=("fc1", "fc2"))


def test_a_new_head_that_never_trains_is_refused():
    message = refused(PhaseSpec("fc.bias", epochs=1))
    assert "the new head never trains (fc.weight); add a phase such as {train: head" in message


def test_a_phase_over_again_is_refused():
    assert "write epochs: 2 in the one before" in refused(PROBE, PROBE)
    again = PhaseSpec("fc", epochs=1)
    assert "trains the same as the one before" in refused(PROBE, again)
    assert made(PROBE, PhaseSpec("head", epochs=1, lr=1e-4))


def test_rules_of_rates_that_set_nobodys_rate_are_refused():
    def rules(*lrs):
        return PhaseSpec("last 1 stage", epochs=1, lrs=lrs)

    assert "lrs: 'stem' does not train in this phase" in refused(PROBE, rules(("stem", 1e-4)))
    covered = rules(("layer3", 1e-4), ("layer3.0", 1e-5))
    assert "lrs: 'layer3.0' is covered by the rules before it" in refused(PROBE, covered)
    assert "lrs: 'layer9' matches nothing" in refused(PROBE, rules(("layer9", 1e-4)))
    assert made(PROBE, rules(("layer3.0", 1e-5), ("layer3", 1e-4)))


def test_settings_that_have_no_effect_on_what_trains_are_refused():
    assert "l2_sp pulls the backbone" in refused(PhaseSpec("head", epochs=1, l2_sp=0.1))
    assert "write train: head" in refused(PROBE, PhaseSpec("all", solve="lbfgs"))
    solved = PhaseSpec("head", solve="lbfgs")
    assert "a head of one layer, and this one has 2" in refused(solved, head=("fc1", "fc2"))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"epochs": 1, "features": "cached"}, "nothing is frozen .*; remove features: cached"),
        ({"epochs": 1, "features": "cached", "train": "fc", "augment": LIGHT}, "remove augment"),
        ({"solve": "lbfgs", "train": "fc", "augment": LIGHT}, "solve: lbfgs is not .* views: 4"),
        ({"epochs": 1, "views": 4, "augment": LIGHT}, "views has no effect, because nothing is"),
        ({"epochs": 1, "feature_precision": "fp16"}, "feature_precision has no effect"),
        (
            {"epochs": 1, "train": "fc", "mixup": 1.0, "feature_precision": "fp16"},
            "mixed differently",
        ),
    ],
)
def test_features_that_cannot_be_kept_are_refused_with_phase_line_and_remedy(settings, why):
    spec = PhaseSpec(**{"train": "all", "name": "second", "place": "a.yaml:7", **settings})
    assert re.search(f"^a.yaml:7: phase second: .*{why}", refused(PROBE, spec))


def test_gradual_may_keep_views_while_it_can_but_not_insist_on_features():
    each = GradualSpec("1 stage", epochs=1, augment=LIGHT, views=2)
    assert made(each)[-1].frozen_prefix == 0
    insisting = replace(each, features="cached")
    assert "phase all: features: cached is not possible" in refused(insisting)


def test_all_problems_of_all_phases_are_named_at_once():
    with pytest.raises(RecipeError) as caught:
        made(
            PhaseSpec("layer9", epochs=1, place="a.yaml:3"),
            PhaseSpec("all", epochs=1, place="a.yaml:4"),
            PhaseSpec("head", epochs=1, l2_sp=1.0, place="a.yaml:5"),
        )
    assert [text.split(": ")[0] for text in caught.value.problems] == [
        "a.yaml:3", "a.yaml:4", "a.yaml:5",
    ]  # fmt: skip


# --- notes, spans, features ------------------------------------------------------------------


def test_groups_left_out_above_the_lowest_that_trains_are_noted():
    groups = network(CNN, unused=("mask_token",))
    phases = make_phases((PROBE, PhaseSpec(["head", "layer1"], epochs=1)), groups)
    hole, unused = phase_notes(phases, groups)
    assert hole == "layer2.0 … layer3.1 never train, though layer1.0 below does"
    assert "mask_token" in unused
    assert phase_notes(made(PROBE), network(CNN)) == ()


def test_spans_are_short():
    groups = network(LONG)
    assert span(groups.names, groups) == "stem … head"
    assert span(["b00", "b01", "head"], groups) == "b00, b01, head"
    assert span(["b00", "b01", "b02", "head"], groups) == "b00 … b02, head"
    assert span([f"b{i:02}" for i in range(0, 60, 2)], groups) == "b00, b02, 28 more"


@pytest.mark.parametrize(
    ("more", "warmup", "still"),
    [
        ({}, 0.1, True),
        ({"warmup": 5}, 5, True),
        ({"schedule": "constant"}, 0.0, True),
        ({"reestimate_norms": True}, 0.1, False),
        ({"warmup": 0, "still_norms": False}, 0, False),
    ],
)
def test_a_phase_starts_gently_from_a_head_that_was_solved_for_unless_told_otherwise(
    more, warmup, still
):
    solved = PhaseSpec("head", solve="lbfgs")
    phases = make_phases([solved, PhaseSpec("all", epochs=1, lr=1e-4, **more)], network(CNN))
    assert (phases[1].spec.warmup, phases[1].spec.still_norms) == (warmup, still)


def test_a_phase_after_a_head_that_was_trained_is_as_it_says():
    first = PhaseSpec("head", epochs=1)
    phases = make_phases([first, PhaseSpec("all", epochs=1, lr=1e-4)], network(CNN))
    assert (phases[1].spec.warmup, phases[1].spec.still_norms) == (0.0, False)


def test_the_plan_says_how_a_phase_spares_a_head_that_was_solved_for():
    groups = network(CNN)
    groups = replace(groups, layout=replace(groups.layout, batch_norms=groups.layout.norms))
    solved, whole = PhaseSpec("head", solve="lbfgs"), PhaseSpec("all", epochs=1, lr=1e-4)
    [note] = phase_notes(make_phases([solved, whole], groups), groups)
    assert note == (
        "phase all starts gently from the solved head: its rates rise during the first 10% of its "
        "steps and it keeps the statistics of BatchNorm layers"
    )
    first = PhaseSpec("head", epochs=1)
    assert phase_notes(make_phases([first, whole], groups), groups) == ()
