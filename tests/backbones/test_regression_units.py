"""Units: a regression trains on standard numbers, and what is saved answers in the targets' own."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from small import state
from tiny_folders import pixels, vit_folder
from transformers import AutoModelForImageClassification

from hf_transfer.backbones.load import load_backbone, load_model
from hf_transfer.backbones.regression_units import in_units, plain_scale, take_scale
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import UserError
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.scale import Scale

NAMES = ("x", "y")
SCALE = Scale((5000.0, -0.2), (300.0, 0.01))
BACKBONES = ("timm/test_resnet", "timm/test_vit", "torchvision/shufflenet_v2_x0_5", "vit")


def network(backbone: str = BACKBONES[0], place: Path | None = None):
    if backbone == "vit":
        backbone = str(vit_folder(place / "vit", image_size=64))
    return load_backbone(backbone, NAMES, pretrained=False, image_size=64, task="regression")


def images(scale: Scale | None = SCALE) -> ImageSet:
    raw = np.zeros((4, 64, 64, 3), np.uint8)
    return ImageSet(raw, np.zeros((4, len(NAMES)), np.float32), NAMES, scale=scale)


def answers(model, x) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(pixel_values=x)["logits"].double().numpy()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_saved_model_answers_in_units_in_every_library(backbone, tmp_path):
    model, x = network(backbone, tmp_path), pixels(64)
    take_scale(model, images())
    standard, before = answers(model, x), state(model)
    expected = SCALE.to_units(standard)
    save_model(model, tmp_path / "model")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    opened = AutoModelForImageClassification.from_pretrained(
        tmp_path / "model", trust_remote_code=True
    )
    assert opened.config.problem_type == "regression"
    assert tuple(opened.config.id2label.values()) == NAMES
    np.testing.assert_allclose(answers(opened, x), expected, rtol=1e-5)
    again = load_model(tmp_path / "model")
    assert (again.backbone.task, again.backbone.scale) == ("regression", plain_scale(2))
    np.testing.assert_array_equal(answers(again, x), answers(opened, x))
    if backbone.startswith("timm"):
        network_ = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
        with torch.no_grad():
            np.testing.assert_allclose(network_(x).double().numpy(), expected, rtol=1e-5)


def test_a_model_in_units_goes_on_saying_the_same_when_it_takes_another_scale(tmp_path):
    model, x = network(), pixels(64)
    take_scale(model, images())
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    before = answers(again, x)
    for scale in (SCALE, Scale((1.0, 2.0), (3.0, 4.0)), SCALE):
        take_scale(again, images(scale))
        np.testing.assert_allclose(scale.to_units(answers(again, x)), before, rtol=1e-4)


def test_taking_a_scale_twice_changes_nothing_more():
    model = network()
    take_scale(model, images())
    before = state(model)
    take_scale(model, images())
    take_scale(model, images(None))
    assert model.backbone.scale == SCALE
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_scale_is_left_alone():
    model = network()
    before = state(model)
    with in_units(model):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_head_that_cannot_take_units_is_refused_before_anything_is_trained():
    model = network()
    del model.timm_model.fc.bias
    model.timm_model.fc.bias = None
    with pytest.raises(UserError, match="is not a dense layer with a bias that ends"):
        take_scale(model, images())
    assert model.backbone.scale is None


def test_what_cuts_numbers_off_behind_the_head_is_found_out():
    model = load_backbone(
        "torchvision/squeezenet1_1", NAMES, pretrained=False, image_size=64, task="regression"
    )  # its last layer is a ReLU
    with pytest.raises(UserError, match="ends the network"):
        take_scale(model, images())


def test_numbers_for_a_model_of_another_task_are_refused():
    model = load_backbone(BACKBONES[0], NAMES, pretrained=False, image_size=64)
    with pytest.raises(UserError, match="task='regression'"):
        take_scale(model, images())
