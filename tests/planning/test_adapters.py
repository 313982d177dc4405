"""Adapters, planned: which layers have them, their names, sizes and rates, without any network."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from hf_transfer.base.errors import RecipeError
from hf_transfer.planning.adapters import parameters_of, select_adapted, with_adapters
from hf_transfer.planning.groups import LayerGroups, group_layers
from hf_transfer.planning.phase_checks import phase_notes
from hf_transfer.planning.phases import make_phases
from hf_transfer.planning.plan import make_plan
from hf_transfer.planning.plan_text import format_plan
from hf_transfer.planning.rates import parameter_rates
from hf_transfer.planning.recorded import recorded_layout
from hf_transfer.planning.selection import SelectorError
from hf_transfer.recipe.load import parse_recipe
from hf_transfer.recipe.specs import PhaseSpec

HEAD = PhaseSpec("head", epochs=1)


def network(name: str) -> LayerGroups:
    layout = recorded_layout(name, 5)
    assert layout is not None
    return group_layers(layout)


VIT, RESNET = network("timm/vit_tiny_patch16_224"), network("timm/resnet10t")


def phase(train, there=VIT, **settings):
    return make_phases([HEAD, PhaseSpec(train, epochs=1, **settings)], there)[-1]


def test_lora_trains_a_and_b_beside_each_layer_and_the_head_and_nothing_else():
    names, adapters = select_adapted("lora(r=4)", VIT)
    layout = VIT.layout
    assert len(adapters.layers) == 4 * 12 + 1  # four linear layers a block, and the patches'
    assert not any(path.startswith("head") for path in adapters.layers)
    assert set(names) == set(layout.head) | set(parameters_of(adapters, layout))
    shapes = parameters_of(adapters, layout)
    assert shapes["blocks.0.attn.qkv.lora_A.default.weight"] == (4, 192)
    assert shapes["blocks.0.attn.qkv.lora_B.default.weight"] == (576, 4)
    assert shapes["patch_embed.proj.lora_A.default.weight"] == (4, 3, 16, 16)
    assert shapes["patch_embed.proj.lora_B.default.weight"] == (192, 4, 1, 1)


def test_an_adapter_is_in_the_group_of_its_layer_and_follows_it():
    _, adapters = select_adapted("lora", RESNET)
    groups = with_adapters(RESNET, adapters)
    layout = groups.layout
    order = [name for name, _ in layout.parameters]
    for path in adapters.layers:
        at = order.index(f"{path}.weight")
        assert order[at + 1] == f"{path}.lora_A.default.weight"
        assert groups.of(order[at + 1]).name == groups.of(f"{path}.weight").name
    assert groups.names == RESNET.names
    assert groups.total == sum(layout.sizes.values())
    assert len(layout.macs) == len(layout.parameters)
    assert with_adapters(RESNET, None) == RESNET


def test_the_cost_of_lora_is_that_of_its_two_products():
    _, adapters = select_adapted("lora(r=2, targets=conv)", VIT)
    layout = with_adapters(VIT, adapters).layout
    macs = dict(zip((name for name, _ in layout.parameters), layout.macs, strict=True))
    patches = 14 * 14
    assert macs["patch_embed.proj.lora_A.default.weight"] == patches * 2 * 3 * 16 * 16
    assert macs["patch_embed.proj.lora_B.default.weight"] == patches * 2 * 192


@pytest.mark.parametrize(
    ("train", "count"),
    [
        ("lora last 2 blocks", 8),
        ("lora(targets=linear)", 48),
        ("lora(targets=conv)", 1),
        ("lora(targets=qkv|proj)", 25),  # the patches' layer is called proj, too
        ("lora(targets=blocks.*.qkv)", 12),
        (["lora", "not stem"], 48),
        (["last 1 block", "lora"], 45),  # beside frozen layers only
        (["lora last 1 block", "norms"], 4),
    ],
)
def test_adapters_stand_where_they_are_asked_to(train, count):
    assert len(select_adapted(train, VIT)[1].layers) == count


def test_the_head_comes_along_unless_it_is_taken_out():
    assert "head.weight" in select_adapted("lora last 1 block", VIT)[0]
    assert "head.weight" not in select_adapted(["lora last 1 block", "not head"], VIT)[0]


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ("lora(rank=8)", "'rank=8' is no setting of adapters"),
        ("lora(r=0)", "r must be a whole number from 1, got '0'"),
        ("lora(r=1.5)", "r is a whole number"),
        ("dora(dropout=1)", "dropout must be from 0 to below 1"),
        ("lora(alpha=x)", "alpha must be above 0, got 'x'"),
        ("lora(r=8", "is not closed; write lora"),
        ("lora last 99 blocks", "this backbone has 1 to"),
        ("lora(targets=nothing)", "matches no plain linear or convolution layer"),
        ("lora norms", "matches no plain linear or convolution layer"),
        (["lora", "dora"], "one kind of adapters, not lora and dora"),
    ],
)
def test_what_cannot_be_read_is_named(train, says):
    with pytest.raises(SelectorError, match=says.replace("(", r"\(")):
        select_adapted(train, VIT)


@pytest.mark.parametrize("name", ["loralei", "lora.weight", "lokr_block", "lora*"])
def test_a_name_that_begins_like_one_is_a_name(name):
    with pytest.raises(SelectorError, match="matches nothing"):
        select_adapted(name, VIT)


def test_layer_decay_holds_for_adapters_as_for_their_layers():
    chosen = phase("lora", layer_decay=0.5, lr=1e-2)
    rates = parameter_rates(chosen)
    whole = make_phases([HEAD, PhaseSpec("all", epochs=1, layer_decay=0.5, lr=1e-2)], VIT)[-1]
    plain = parameter_rates(whole)
    for path in chosen.adapters.layers:
        assert rates[f"{path}.lora_A.default.weight"] == plain[f"{path}.weight"]
    by_name = phase("lora", lrs=(("head", 1e-3), ("*lora_B*", 2e-3)), lr=1e-4)
    rates = parameter_rates(by_name)
    assert {rates[n] for n in rates if "lora_B" in n} == {2e-3}
    assert {rates[n] for n in rates if "lora_A" in n} == {1e-4}


def test_adapters_of_the_last_block_leave_the_frozen_prefix_to_be_cached():
    assert phase("lora last 1 block").frozen_prefix == phase("last 1 block").frozen_prefix > 5


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ([PhaseSpec("lora", epochs=1)], "put {train: head"),
        ([HEAD, PhaseSpec("lora", epochs=1, l2_sp=0.1)], "l2_sp pulls weights that adapters leave"),
        ([HEAD, PhaseSpec("all", epochs=1, keep_adapters=True)], "keep_adapters: there are none"),
        (
            [HEAD, PhaseSpec("lora", epochs=1, keep_adapters=True), PhaseSpec("all", epochs=1)],
            "remove keep_adapters to merge them",
        ),
        (
            [HEAD, PhaseSpec("norms", epochs=1), PhaseSpec("lora", epochs=1, keep_adapters=True)],
            "remove keep_adapters to merge them",
        ),
    ],
)
def test_what_does_not_go_with_adapters_is_named(specs, says):
    with pytest.raises(RecipeError, match=says):
        make_phases(specs, VIT)


def test_the_plan_counts_adapters_and_says_that_their_layers_change():
    text = "phases:\n  - {train: head, epochs: 1}\n  - {train: 'lora(r=8)', epochs: 2}\n"
    recipe = replace(parse_recipe(text, "r.yaml"), backbone="timm/vit_tiny_patch16_224")
    phases = make_phases(recipe.phases, VIT)
    counts = {"train": {"a": 50, "b": 50}, "validation": {"a": 9, "b": 9}}
    plan = make_plan(recipe, VIT, phases, counts)
    per_block = 8 * ((192 + 576) + (192 + 192) + (192 + 768) + (768 + 192))
    stem = 8 * 3 * 16 * 16 + 192 * 8
    assert plan.phases[1].parameters == 12 * per_block + stem + 192 * 5 + 5
    whole = make_plan(recipe, VIT, [phase("all")], counts).phases[0]
    assert plan.phases[1].memory_bytes < whole.memory_bytes
    shown = format_plan(plan)
    assert f"{plan.phases[1].parameters:,}" in shown
    sizes = VIT.layout.sizes
    kept = sum(sizes.values()) - sum(sizes[name] for name in VIT.layout.weights)
    assert f"never trained: {kept - 5:,} parameters" in shown  # biases, norms, positions
    notes = phase_notes(phases, VIT)
    assert not any("never" in note for note in notes)
    assert notes == ("phase lora-r-8: 49 layers have adapters",)


def test_the_plan_says_which_layers_have_no_adapters():
    there = network("timm/mobilenetv3_small_100")  # of which eleven convolutions are by channel
    (note,) = phase_notes((phase("lora", there),), there)[-1:]
    assert note.endswith("; 11 other weights in the same groups have none")


def test_reading_adapters_imports_neither_torch_nor_peft():
    code = "import sys, hf_transfer.planning.adapters; print({'torch', 'peft'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()"
