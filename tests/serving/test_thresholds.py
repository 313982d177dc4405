"""The thresholds of a model: saved with it, and used wherever it answers."""

from dataclasses import replace

import numpy as np
import pytest

from hf_transfer.backbones.load import load_backbone, load_model, save_model
from hf_transfer.base.errors import RecipeError
from hf_transfer.recipe.load import dump_recipe, parse_recipe
from hf_transfer.serving.answers import format_predictions
from hf_transfer.serving.predict import predict

LABELS = ("cat", "dog")


@pytest.fixture(scope="module", params=["timm/test_resnet", "torchvision/alexnet"])
def saved(request, tmp_path_factory):
    model = load_backbone(
        request.param, LABELS, pretrained=False, task="multi_label", image_size=64
    )
    folder = tmp_path_factory.mktemp("several") / "model"
    model.backbone = replace(model.backbone, thresholds=(0.2, 0.9))
    save_model(model, folder)
    return folder


def test_they_are_saved_with_the_model_and_decide_what_is_there(saved):
    model = load_model(saved)
    assert model.backbone.thresholds == (0.2, 0.9)
    [answer] = predict(model, [np.zeros((64, 64, 3), np.uint8)])
    assert [name for name, _ in answer.there] == ["cat"]  # both have about one half
    assert answer.to_dict()["thresholds"] == {"cat": 0.2, "dog": 0.9}
    assert format_predictions([answer]).endswith("on: cat 0.2, dog 0.9.")


def test_a_recipe_says_by_what_they_are_chosen():
    text = "task: multi_label\nphases: [{train: head, epochs: 1}]\nthresholds: "
    for given, read in (("f1", "f1"), ("{cat: 5}", (("cat", 5.0),))):
        recipe = parse_recipe(text + given, "r.yaml")
        assert recipe.thresholds == read
        assert parse_recipe(dump_recipe(recipe), "r.yaml") == recipe
    with pytest.raises(RecipeError, match="thresholds are for task: multi_label"):
        parse_recipe("phases: [{train: head, epochs: 1}]\nthresholds: f1\n", "r.yaml")
