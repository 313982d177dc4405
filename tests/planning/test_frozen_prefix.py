"""Whether a frozen prefix is computed once is decided by what it costs, unless a recipe says."""

import re

import pytest

from hf_transfer.base.cache import Room
from hf_transfer.base.errors import UserError
from hf_transfer.planning.frozen_prefix import check_kept, feature_bytes, prefix_macs, why_live
from hf_transfer.planning.groups import group_layers
from hf_transfer.planning.phases import make_phases
from hf_transfer.planning.recorded import recorded_layout
from hf_transfer.recipe.load import parse_phase


def resnet50(backbone="timm/resnet50", **phase):
    layout = recorded_layout(backbone, 5)
    groups = group_layers(layout)
    spec = {"train": "head", "epochs": 10, "cold_head": True, **phase}
    spec = parse_phase({key: value for key, value in spec.items() if value is not None})
    return make_phases([spec], groups)[0]


def test_features_of_the_head_are_what_its_layer_takes():
    phase = resnet50()
    assert feature_bytes(phase) == 4 * 2048
    assert prefix_macs(phase) == pytest.approx(4.1e9, rel=0.02)


@pytest.mark.parametrize(
    ("phase", "why"),
    [
        ({}, None),
        ({"train": "last 1 stage"}, None),
        ({"train": "all"}, "nothing is frozen"),
        ({"features": "live"}, "the recipe says so"),
        ({"augment": "light"}, "vary from epoch to epoch"),
        ({"augment": "light", "views": 4}, None),
        ({"augment": "light", "views": 12}, "10 epochs are fewer than the 12 views"),
        ({"augment": "light", "views": 12, "features": "cached"}, None),
        ({"mixup": 0.2}, "mixed differently"),
        ({"epochs": None, "steps": 10}, "0.32 epochs are fewer"),
        ({"epochs": None, "steps": 10, "features": "cached"}, None),
        ({"epochs": None, "steps": 100}, None),
        ({"epochs": None, "solve": "lbfgs"}, None),
    ],
)
def test_the_choice_and_its_reason(phase, why):
    found = why_live(resnet50(**phase), images=1000)
    assert (found is None) == (why is None), found
    assert found is None or re.search(why, found), found


def test_a_thin_prefix_is_run_again_and_can_be_forced():
    """MobileNet's first layer: 5 million multiply-adds give 800 kB of features."""
    thin = {"backbone": "timm/mobilenetv3_large_100", "train": "from blocks.0"}
    assert "costs less than reading" in why_live(resnet50(**thin))
    assert why_live(resnet50(**thin, features="cached")) is None


@pytest.mark.parametrize(
    ("backbone", "train", "numbers"),
    [
        ("timm/vgg16", ["features.24", "head"], 14 * 14 * 512),  # a pooling layer below it
        ("torchvision/vgg16", ["classifier.0", "head"], 7 * 7 * 512),
        ("timm/vit_tiny_patch16_224", "from blocks.0", 197 * 192),  # with the class token
        ("timm/vit_tiny_patch16_224", "lora(r=2) last 1 block", 2 * 197 * 192 + 3 * 197 * 192),
    ],
)
def test_features_are_all_that_crosses_to_the_first_layer_that_trains(backbone, train, numbers):
    """An adapter's layer is frozen: what it takes and what it gives cross, and the residual."""
    phase = resnet50(backbone, train=train)
    assert feature_bytes(phase) == 4 * numbers


@pytest.mark.parametrize("name", ["timm/vgg16", "timm/resnet50", "torchvision/densenet121"])
def test_a_layout_at_another_size_of_images_is_as_if_traced_there(name):
    """Every group's cut; of these networks the sides are halved without rests."""
    layout = recorded_layout(name, 5)
    above = group_layers(layout).groups[1:]
    first = [next(name for name in layout.sizes if name in group.parameters) for group in above]
    for size in (64, 96, 128):
        layouts = recorded_layout(name, 5, size), layout.at(size)
        traced, scaled = (dict(zip(x.sizes, x.crossing, strict=True)) for x in layouts)
        assert [traced[name] for name in first] == [scaled[name] for name in first], size
        assert layouts[1].image["size"] == size
    assert layout.at(layout.image["size"]) == layout


@pytest.mark.parametrize(
    ("phase", "room", "why"),
    [
        ({"features": "cached"}, Room(9 * 8192, 10**9), None),
        (
            {"features": "cached"},
            Room(9 * 8192 - 1, 10**9),
            "cache's 0.1 MB; raise HF_TRANSFER_CACHE_GB",
        ),
        (
            {"features": "cached"},
            Room(10**9, 9 * 8192 - 1),
            "on the disk, .*HF_TRANSFER_CACHE name a",
        ),
        ({"features": "cached", "feature_precision": "fp16"}, Room(9 * 4096, 10**9), None),
        (
            {"epochs": None, "solve": "lbfgs"},
            Room(1000, 10**9),
            "remove solve: lbfgs and write epochs",
        ),
        ({}, Room(0, 0), None),
    ],
)
def test_what_insists_on_features_that_find_no_room_is_refused(phase, room, why):
    """ResNet-50's head takes 2,048 numbers of each of 9 images."""
    found = resnet50(**phase)
    images = {"train": 6, "validation": 3, "test": 100}
    if why is None:
        return check_kept([found], images, room)
    with pytest.raises(UserError, match=why):
        check_kept([found], images, room)
    check_kept([found], {"train": 0}, room)


def test_numbers_of_half_precision_count_half_before_features_are_refused():
    phase = resnet50(features="cached")
    images, room = {"train": 10}, Room(10 * 4096, 10**9)
    check_kept([phase], images, room, halved=True)
    with pytest.raises(UserError):
        check_kept([phase], images, room)


def test_what_insists_on_features_is_refused_where_parameters_are_sharded():
    phase = resnet50(features="cached")
    with pytest.raises(
        UserError, match=r"sharded \(FSDP\); train without FSDP, or remove features"
    ):
        check_kept([phase], {"train": 10}, None, sharded=True)
    exact = resnet50(epochs=None, solve="lbfgs")
    check_kept([exact], {"train": 10}, None, sharded=True)
