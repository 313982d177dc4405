"""What would fail on this data is told before anything trains."""

from dataclasses import replace

import pytest

from hf_transfer.base.errors import RecipeError
from hf_transfer.planning.data_checks import check_batches, check_metrics
from hf_transfer.planning.groups import group_layers
from hf_transfer.planning.phases import make_phases
from hf_transfer.planning.recorded import recorded_layout
from hf_transfer.recipe.conflicts import phase_conflicts
from hf_transfer.recipe.load import parse_phase
from hf_transfer.recipe.specs import DataSpec, PhaseSpec, Recipe, Stop


def counts(labels: int, validation: int = 3) -> dict:
    names = [f"label {i}" for i in range(labels)]
    return {"train": dict.fromkeys(names, 9), "validation": dict.fromkeys(names, validation)}


def recipe(**settings) -> Recipe:
    return Recipe("r", (PhaseSpec("head", epochs=1, **settings),))


@pytest.mark.parametrize("settings", [{"best": "top5"}, {"stop": Stop("top5")}])
def test_top5_needs_more_than_five_labels(settings):
    key = next(iter(settings))
    with pytest.raises(RecipeError, match=f"{key}: top5 needs more than 5 labels, and the data ha"):
        check_metrics(recipe(**settings), counts(5))
    check_metrics(recipe(**settings), counts(6))
    check_metrics(recipe(best="accuracy"), counts(5))


@pytest.mark.parametrize("task", ["contrastive", "redundancy", "slow"])
def test_what_compares_images_needs_two_of_them(task):
    made = replace(recipe(augment="light"), task=task, loss="pretext", data=DataSpec(path="un"))
    check_metrics(made, {"train": {"image": 9}, "validation": {"image": 2}})
    with pytest.raises(RecipeError, match=f"un: {task} compares images .* 1 to validate on; raise"):
        check_metrics(made, {"train": {"image": 9}, "validation": {"image": 1}})
    with pytest.raises(RecipeError, match="there is 1 to learn from; add images"):
        check_metrics(made, {"train": {"image": 1}})
    alone = replace(made.phases[0], batch_size=1)
    assert any("write batch_size: 2" in text for text in phase_conflicts(alone, task, "pretext"))
    one = {"train": {"image": 1}, "validation": {"image": 1}}
    check_metrics(replace(made, task="rotation"), one)


def test_auroc_needs_validation_images_of_every_label():
    data = counts(3)
    check_metrics(recipe(best="auroc"), data)
    data["validation"]["label 1"] = 0
    with pytest.raises(RecipeError, match="'label 1' has none; write balanced_accuracy"):
        check_metrics(recipe(best="auroc"), data)
    del data["validation"]["label 1"]
    with pytest.raises(RecipeError, match="'label 1' has none"):
        check_metrics(recipe(best="auroc"), data)


def phases(size: int, backbone="timm/resnet18", train="all", **settings):
    groups = group_layers(recorded_layout(backbone, 5)).at(size)
    spec = {"train": train, "epochs": 1, "cold_head": True, "batch_size": 8, **settings}
    return make_phases([parse_phase(spec)], groups)


@pytest.mark.parametrize(
    ("size", "settings", "images", "fails"),
    [
        (32, {}, 17, True),  # the last stage of a ResNet is 1 x 1 at 32 px, and 17 mod 8 = 1
        (32, {}, 16, False),
        (64, {}, 17, False),  # 2 x 2
        (32, {"batch_size": 1}, 16, True),
        (64, {"batch_size": 1}, 16, False),
        (32, {"still_norms": True}, 17, False),
        (32, {"train": "head"}, 17, False),
        (32, {"train": "last 1 stage"}, 17, True),
        (32, {"train": ["all", "not norms"]}, 17, False),
        (32, {"epochs": None, "steps": 2}, 17, False),  # it ends before the last batch
        (32, {"epochs": None, "steps": 3}, 17, True),
        (32, {"backbone": "timm/vit_tiny_patch16_224"}, 17, False),
    ],
)
def test_a_batch_of_one_image_at_one_position_is_told_where_batchnorm_trains(
    size, settings, images, fails
):
    made = phases(size, **settings)
    if not fails:
        return check_batches(made, images)
    with pytest.raises(RecipeError, match="one image, and BatchNorm layer layer4.* single value"):
        check_batches(made, images)


def test_the_batch_size_that_is_proposed_has_no_such_batch():
    with pytest.raises(RecipeError, match="write batch_size: 9 or still_norms: true"):
        check_batches(phases(32), 17)
    check_batches(phases(32, batch_size=9), 17)
    check_batches(phases(32), 18, processes=2)
    for images in (17, 25):  # of the last batches, one process has a single image of its own
        with pytest.raises(RecipeError, match="write batch_size: 9 or"):
            check_batches(phases(32), images, processes=2)
