"""The shipped recipes: few, short, explained, and each one comes to phases on its backbone."""

import re
from dataclasses import replace

import pytest

from hf_transfer.planning.groups import group_layers
from hf_transfer.planning.phases import make_phases
from hf_transfer.planning.recorded import recorded_layout
from hf_transfer.planning.steps import optimizer_steps
from hf_transfer.recipe.load import dump_recipe, load_recipe, parse_recipe
from hf_transfer.recipe.shipped import shipped_recipes

NAMES = (
    "alexnet_fixed_blocks",
    "alexnet_last_two",
    "discriminative",
    "exact_head",
    "feature_extraction",
    "feature_extraction_augmented",
    "free_labels",
    "freeze_bottom",
    "full",
    "gradual",
    "lora",
    "lp_ft",
    "multi_label",
    "quickstart",
    "regression",
    "scratch",
    "small_medical",
    "vgg16_top_block",
)


def test_there_are_eighteen():
    assert tuple(shipped_recipes()) == NAMES
    assert len(NAMES) == 18


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_short_and_its_header_says_what_for_when_how_and_with_what_result(name):
    lines = shipped_recipes()[name].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 40
    header = [line for line in lines if line.startswith("# ")]
    assert lines[: len(header)] == header
    assert header[0].startswith(f"# recipes/{name}.yaml: ")
    assert header[1].startswith("# for: ")
    (command,) = (line for line in header if line.startswith("# run: "))
    assert re.fullmatch(rf"# run: hf-transfer train {name}( .*)?", command)
    (result,) = (line for line in header if line.startswith("# result: "))
    assert result == "# result: not measured" or re.search(r"\d\.\d+.*seed", result)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_read_and_written_without_loss(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert parse_recipe(dump_recipe(recipe), "other.yaml") == recipe


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_comes_to_phases_on_its_own_backbone(name):
    recipe = load_recipe(name)
    backbone = recipe.backbone or recipe.source.backbone
    layout = recorded_layout(backbone, 5)
    if layout is None:
        pytest.skip(f"{backbone} is not recorded")
    if recipe.head.replace > 1:  # what the loader would report of AlexNet's last two layers
        layers = [name for name, _ in layout.parameters][-2 * recipe.head.replace :]
        layout = replace(layout, head=tuple(layers))
    groups = group_layers(replace(layout, random=not recipe.pretrained))
    for specs in (recipe.phases, recipe.source.phases if recipe.source else recipe.phases):
        phases = make_phases(specs, groups)
        assert set(layout.head) <= {p for phase in phases for p in phase.parameters}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", ["seed=3", "phases.*.batch_size=8", "data.path=a: b"])
def test_a_recipe_takes_overrides(name, setting):
    if (name, setting[-12:]) == ("exact_head", "batch_size=8"):
        setting = "phases.*.name=mine"  # a solver has no batches
    assert load_recipe(name, [setting]) != load_recipe(name)


def test_a_setting_of_steps_for_all_phases_leaves_out_a_head_that_is_solved():
    recipe = load_recipe("lp_ft", ["phases.*.batch_size=8"])
    assert [phase.batch_size for phase in recipe.phases] == [32, 8]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "quickstart"])
def test_no_phase_of_a_recipe_is_over_in_a_handful_of_steps_where_images_are_few(name):
    recipe = load_recipe(name)
    for spec in (*recipe.phases, *(recipe.source.phases if recipe.source else ())):
        assert spec.solve or optimizer_steps(spec, 20) >= 20


def test_epochs_of_ones_own_replace_the_fewest_steps_of_a_recipe():
    assert load_recipe("lp_ft").phases[1].min_steps == 60
    assert load_recipe("lp_ft", ["phases.*.epochs=1"]).phases[1].min_steps is None
    both = load_recipe("lp_ft", ["phases.1.epochs=1", "phases.1.min_steps=7"]).phases[1]
    assert (both.epochs, both.min_steps) == (1, 7)


def test_general_recipes_come_to_phases_on_networks_of_every_kind():
    backbones = ("resnet18", "vit_small_patch16_224", "densenet121", "vgg16", "convnext_tiny")
    general = [name for name in NAMES if not name.startswith(("alexnet", "vgg", "quick"))]
    for backbone in backbones:
        layout = recorded_layout(f"timm/{backbone}", 5)
        if layout is None:
            continue
        groups = group_layers(layout)
        for name in general:
            recipe = load_recipe(name)
            random = replace(groups, layout=replace(layout, random=not recipe.pretrained))
            assert make_phases(recipe.phases, random), (backbone, name)


def test_the_freeze_of_freeze_bottom_is_a_setting():
    layout = recorded_layout("timm/resnet50", 5)
    if layout is None:
        pytest.skip("resnet50 is not recorded")
    groups = group_layers(layout)
    header = shipped_recipes()["freeze_bottom"].read_text(encoding="utf-8")
    setting = re.search(r"--set '(.*)'", header)[1]
    cuts = [
        make_phases(load_recipe("freeze_bottom", overrides).phases, groups)[-1]
        for overrides in ([], [setting])
    ]
    assert cuts[1].frozen_prefix < cuts[0].frozen_prefix
