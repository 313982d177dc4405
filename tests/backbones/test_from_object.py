"""A user's own model: its head and groups are found, or given by hand, or asked for in one line."""

from __future__ import annotations

import pytest
import timm
import torch
from tiny_folders import pixels, resnet_folder, vit_folder
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTModel,
)

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.backbones.from_object import describe
from hf_transfer.backbones.load import load_backbone
from hf_transfer.base.download import BackboneError
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.planning.selection import select

torch.set_num_threads(1)
SMALL = ImageSettings(32)


def is_sound(backbone: Backbone, network: nn.Module) -> bool:
    """Whether every parameter is in exactly one group and the head is the last."""
    own = [name for group in backbone.groups.groups for name in group.parameters]
    names = {name for name, _ in network.named_parameters()}
    last = backbone.groups.groups[-1]
    return sorted(own) == sorted(names) and last.parameters == backbone.layout.head


def refused(*arguments, **options) -> str:
    """Return the one line with which describing is refused."""
    with pytest.raises(BackboneError) as caught:
        describe(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_loaded_model_is_what_its_loader_says():
    model = load_backbone("timm/test_resnet", ["a", "b"], pretrained=False, image_size=64)
    assert describe(model) is model.backbone


@pytest.mark.parametrize("make", [vit_folder, resnet_folder])
def test_a_transformers_classifier_is_found_out(make, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(make(tmp_path))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backbone = describe(model)
    assert all(name.startswith("classifier") for name in backbone.layout.head)
    assert is_sound(backbone, model)
    assert backbone.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert backbone.prefix == ""
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_timm_wrapper_is_known_by_its_bare_names_and_pixels():
    config = TimmWrapperConfig(
        architecture="test_resnet",
        num_labels=3,
        pretrained_cfg={"input_size": [3, 64, 64], "mean": [0.1] * 3, "std": [0.2] * 3},
    )
    model = TimmWrapperForImageClassification(config)
    backbone = describe(model)
    assert (backbone.prefix, backbone.source) == ("timm_model.", "timm")
    assert is_sound(backbone, model.timm_model)
    assert backbone.layout.head == ("fc.weight", "fc.bias")
    assert (backbone.image.size, backbone.image.mean) == (64, (0.1,) * 3)


class Larger(nn.Module):
    """An encoder of timm inside a larger model with a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model("test_resnet", num_classes=0)
        self.neck = nn.Linear(self.encoder.num_features, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.neck(self.encoder(pixel_values)).relu())


@pytest.mark.parametrize("head", [["head"], ["head.*"], ["head.weight", "head.bias"]])
def test_an_encoder_in_a_larger_model_is_grouped_below_the_head_that_is_named(head):
    model = Larger()
    backbone = describe(model, head=head, image=SMALL)
    assert is_sound(backbone, model)
    assert backbone.groups.names[-2:] == ("neck", "head")
    assert sum("encoder.layer" in name for name in backbone.groups.names) >= 4
    trained = select("last 1 stage", backbone.groups)
    assert "head.weight" in trained
    assert not any(name.startswith("encoder.conv1") for name in trained)


def test_an_encoder_without_classifier_has_its_head_named():
    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2}
            self.body = ViTModel(
                ViTConfig(num_attention_heads=2, intermediate_size=64, **config),
                add_pooling_layer=False,
            )
            self.out = nn.Linear(32, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.body(x).last_hidden_state[:, 0])

    model = Probe()
    assert is_sound(describe(model, head=["out"], image=SMALL), model)


def test_a_head_that_nobody_names_is_asked_for():
    line = refused(Larger())
    assert "head=['head.*']" in line
    assert "Larger" in line
    assert "head.bias" in refused(Larger(), head=["fc.*"])


class Two(nn.Module):
    """A network that takes more than images, so that none can be passed through it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.ears = nn.Linear(5, 4)
        self.head = nn.Linear(8, 2)

    def forward(self, image: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        seen = self.eyes(image).mean((2, 3))
        return self.head(torch.cat((seen, self.ears(sound)), 1))


HAND = {"eyes": ["eyes"], "ears": ["ears.*"], "head": ["head.*"]}


def test_what_cannot_be_grouped_says_how_to_give_groups_by_hand():
    line = refused(Two(), head=["head"], image=SMALL)
    assert "groups={" in line
    assert "Two" in line


def test_groups_are_given_by_hand():
    model = Two()
    backbone = describe(model, groups=HAND, image=SMALL)
    assert backbone.groups.names == ("eyes", "ears", "head")
    assert is_sound(backbone, model)
    assert backbone.groups.groups[0].modules == ("eyes",)
    assert backbone.layout.norms == ("eyes.1",)
    trained = select("ears", backbone.groups)
    assert trained == ("ears.weight", "ears.bias")


@pytest.mark.parametrize("name", ["timm/test_resnet", "torchvision/resnet18"])
def test_groups_by_hand_replace_those_of_a_known_model(name):
    model = load_backbone(name, ["a", "b"], pretrained=False, image_size=64)
    backbone = describe(model, groups={"all below": ["*"], "head": ["fc"]})
    assert backbone.groups.names == ("all below", "head")
    assert backbone.prefix == model.backbone.prefix
    assert is_sound(backbone, model.get_submodule(backbone.prefix.rstrip(".")))
    assert (backbone.image.size, backbone.labels) == (64, ("a", "b"))


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"eyes": ["eyes"], "head": ["head"]}, "ears.weight"),
        ({**HAND, "nose": ["nose.*"]}, "'nose'"),
        ({"eyes": ["eyes"], "again": ["eyes"], "ears": ["ears"], "head": ["head"]}, "'again'"),
        ({"eyes": ["eyes"], "ears": ["ears"], "head": ["tail"]}, "matches no parameter"),
        ({"eyes": ["eyes"], "ears": ["ears"]}, "head"),
    ],
)
def test_groups_by_hand_that_are_not_whole_are_one_line(groups, words):
    assert words in refused(Two(), groups=groups, image=SMALL)


def test_describing_leaves_mode_and_random_numbers_alone(tmp_path):
    model = AutoModelForImageClassification.from_pretrained(vit_folder(tmp_path)).train()
    state = torch.random.get_rng_state()
    describe(model)
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert model(pixels(32)).logits.shape == (2, 3)
