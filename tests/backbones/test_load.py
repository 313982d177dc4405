"""Loading: the head is what is new, everything else is the checkpoint's, planning reads nothing."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import HEAD, arguments, images, network
from tiny_folders import (
    FOLDERS,
    logits,
    pixels,
    resnet_folder,
    stir,
    tensors,
    timm_folder,
    torchvision_folder,
    vit_folder,
)
from transformers import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTModel,
)

from hf_transfer.backbones.building import build_network
from hf_transfer.backbones.load import layout_of, load_backbone, load_model, planned_layout
from hf_transfer.backbones.origins import locate
from hf_transfer.backbones.saving import save_model
from hf_transfer.backbones.weights import check_finite
from hf_transfer.base.download import BackboneError
from hf_transfer.planning.groups import group_layers
from hf_transfer.recipe.load import parse_recipe
from hf_transfer.training.trainer import TransferTrainer

torch.set_num_threads(1)
ABC = ("a", "b", "c")


@pytest.fixture(params=FOLDERS)
def folder(request: Any, tmp_path: Path) -> Path:
    """A pretrained folder of each library, for three labels."""
    return FOLDERS[request.param](tmp_path / "own")


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_no_numbers_are_refused_with_the_file_and_the_first_tensor(
    value, folder, tmp_path
):
    file = folder / "model.safetensors"
    own = load_file(file)
    name = next(name for name in own if own[name].ndim == 4 and "classifier" not in name)
    own[name].view(-1)[3] = value
    save_file(own, file, {"format": "pt"})
    with pytest.raises(
        BackboneError, match=rf"{re.escape(str(file))}: .*{name.removeprefix('network.')} holds nan"
    ):
        load_backbone(str(folder), ABC)
    model = network()
    next(model.buffers()).fill_(value)
    with pytest.raises(BackboneError, match=r"timm/test_resnet: .*running_mean holds nan or"):
        TransferTrainer(model, arguments(tmp_path), [HEAD], train_dataset=images())


def test_finite_weights_are_taken_although_their_sum_is_not():
    large = torch.nn.Linear(4, 4)
    torch.nn.init.constant_(large.weight, 3e38)
    assert large.weight.sum().isinf()
    check_finite(large, "large")
    large.weight.data[0, 0] = -torch.inf
    with pytest.raises(BackboneError, match=r"large: weight holds nan or inf"):
        check_finite(large, "large")


# --- the head --------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [ABC, ("x", "y", "z", "w")])
def test_all_but_the_head_is_the_checkpoints_and_the_head_is_new(folder, labels):
    own = tensors(load_backbone(str(folder)))
    model = load_backbone(str(folder), labels)
    backbone = model.backbone
    assert backbone.labels == labels
    assert backbone.weights == "pretrained"
    for name, value in tensors(model).items():
        assert torch.equal(value, own[name]) == (name not in backbone.layout.head), name
    assert backbone.groups.groups[-1].parameters == backbone.layout.head


def test_the_head_is_a_function_of_the_seed_alone(folder):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = tensors(load_backbone(str(folder), ABC, seed=1))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.rand(100)
    second = tensors(load_backbone(str(folder), ABC, seed=1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = load_backbone(str(folder), ABC, seed=2)
    changed = {
        name for name, value in tensors(other).items() if not torch.equal(value, first[name])
    }
    assert changed
    assert changed <= set(other.backbone.layout.head)


def test_random_weights_are_a_function_of_the_seed(folder):
    models = [load_backbone(str(folder), ABC, pretrained=False, seed=s) for s in (1, 1, 2)]
    one, same, other = (tensors(model) for model in models)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())
    assert models[0].backbone.weights == "random"
    head = load_backbone(str(folder), ABC, seed=1)
    for name in head.backbone.layout.head:
        assert torch.equal(tensors(head)[name], one[name]), "whatever the other weights"


def test_a_head_for_the_same_labels_is_kept_if_asked_in_their_order(tmp_path):
    for source, make in FOLDERS.items():
        path = make(tmp_path / source)
        model = load_backbone(str(path))
        save_model(load_backbone(str(path), ABC, seed=3), tmp_path / "named")
        named = load_model(tmp_path / "named")
        turned = load_backbone(str(tmp_path / "named"), ("c", "a", "b"), keep_head=True)
        x = pixels(model.backbone.image.size)
        assert torch.allclose(logits(turned, x), logits(named, x)[:, [2, 0, 1]], atol=1e-6)
        assert turned.backbone.layout.head == named.backbone.layout.head


def test_a_head_whose_labels_have_no_names_is_not_kept_for_labels_that_do(tmp_path):
    """By their place, daisies would be called roses."""
    for source, make in {"timm": FOLDERS["timm"], "transformers": vit_folder}.items():
        path = make(tmp_path / source)
        with pytest.raises(BackboneError, match="'daisy' is not among them"):
            load_backbone(str(path), ("daisy", "rose", "tulip"), keep_head=True)


def test_imagenets_labels_are_matched_by_name_too(tmp_path):
    path = timm_folder(tmp_path / "own", "test_resnet", 1000)
    own = load_backbone(str(path)).backbone.labels
    assert own[0].startswith("tench")
    same, x = load_backbone(str(path), own, keep_head=True), pixels(64)
    assert torch.equal(logits(same, x), logits(load_backbone(str(path)), x))
    with pytest.raises(BackboneError, match="'n00000000' is not among them"):
        load_backbone(str(path), [f"n{i:08}" for i in range(1000)], keep_head=True)
    with pytest.raises(BackboneError, match="several labels called 'crane'"):  # and two maillots
        load_backbone(str(path), sorted(own), keep_head=True)


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        (("a", "b", "z"), {"keep_head": True}, "'z' is not among them"),
        (("a", "b"), {"keep_head": True}, "for 3 labels, not 2"),
        (ABC, {"keep_head": True, "replace_layers": 2}, "exclude each other"),
        (ABC, {"keep_head": True, "pretrained": False}, "no head to keep"),
        (ABC, {"replace_layers": 0}, "at least 1"),
        (ABC, {"replace_layers": 99}, "layers with weights"),
        ((), {}, "needs labels"),
    ],
)
def test_a_head_that_cannot_be_is_one_line(labels, options, words, tmp_path):
    path = torchvision_folder(tmp_path / "own")
    with pytest.raises(BackboneError, match=words) as caught:
        load_backbone(str(path), labels, **options)
    assert "\n" not in str(caught.value)


def test_the_last_two_layers_are_replaced_and_nothing_else(tmp_path):
    network = stir(build_network(locate("torchvision/mobilenet_v3_small"), 10))
    state = network.state_dict()
    torch.save(state, tmp_path / "own.pth")
    model = load_backbone(
        "torchvision/mobilenet_v3_small", ABC, weights=str(tmp_path / "own.pth"), replace_layers=2
    )
    head = tuple(f"classifier.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias"))
    assert model.backbone.layout.head == head
    for name, value in tensors(model).items():
        assert (name in head) != (
            value.shape == state[name].shape and torch.equal(value, state[name])
        )
    assert model.backbone.weights == str(tmp_path / "own.pth")


def test_a_layer_that_is_replaced_takes_its_norm_and_statistics_with_it(tmp_path):
    path = resnet_folder(tmp_path / "own")
    own = tensors(load_backbone(str(path)))
    model = load_backbone(str(path), ABC, replace_layers=2)
    last = "resnet.encoder.stages.1.layers.0.shortcut"  # it runs after the layers that it bridges
    below = {name for name in model.backbone.layout.head if not name.startswith("classifier")}
    kinds = ("convolution.weight", "normalization.weight", "normalization.bias")
    assert below == {f"{last}.{kind}" for kind in kinds}
    assert torch.equal(tensors(model)[f"{last}.normalization.running_mean"], torch.zeros(16))
    assert not torch.equal(own[f"{last}.normalization.running_mean"], torch.zeros(16))


def test_every_one_of_several_heads_is_new(tmp_path):
    tiny = {"embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": 32}
    path = timm_folder(tmp_path / "own", "deit_tiny_distilled_patch16_224", **tiny)
    heads = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
    assert load_backbone(str(path), ABC).backbone.layout.head == heads


def test_networks_and_checkpoints_without_head_get_one(tmp_path):
    timm_path = timm_folder(tmp_path / "timm", "test_vit", 0, img_size=32)
    transformers_path = vit_folder(tmp_path / "vit", ViTModel)
    for path, head in ((timm_path, "head"), (transformers_path, "classifier")):
        backbone = load_backbone(str(path), ABC).backbone
        assert backbone.layout.head == (f"{head}.weight", f"{head}.bias")
        with pytest.raises(BackboneError, match="head"):
            load_backbone(str(path))
    assert layout_of("timm/vit_small_patch14_dinov2", 4, image_size=56).head == (
        "head.weight",
        "head.bias",
    )
    with pytest.raises(BackboneError, match="no head"):
        layout_of("timm/qwen3_vit_88m_enc", 4)


def test_a_teachers_head_gives_way_to_a_plain_one(tmp_path):
    path = vit_folder(tmp_path / "deit", DeiTForImageClassificationWithTeacher)
    model = load_backbone(str(path), ABC)
    assert type(model) is DeiTForImageClassification
    assert model.backbone.layout.head == ("classifier.weight", "classifier.bias")
    assert model(pixels(32), labels=torch.tensor([0, 1])).loss.requires_grad


def test_what_a_checkpoint_lacks_below_the_classifier_counts_as_new(tmp_path):
    path = vit_folder(tmp_path / "own")
    state = load_file(path / "model.safetensors")
    lost = "vit.layernorm.weight"
    del state[lost]
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    model = load_backbone(str(path), ABC)
    assert model.backbone.layout.head == (lost, "classifier.weight", "classifier.bias")


def test_a_stale_kind_of_problem_does_not_change_the_loss(tmp_path):
    path = vit_folder(tmp_path / "own", problem_type="multi_label_classification")
    output = load_backbone(str(path), ABC)(pixels(32), labels=torch.tensor([0, 2]))
    expected = torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 2]))
    assert torch.equal(output.loss, expected)


# --- planning --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "loading"),
    [
        ({}, {}),
        ({"replace_layers": 2}, {}),
        ({"image_size": 96}, {}),
        ({"channels": 1}, {}),
    ],
)
def test_a_layout_is_that_of_the_loaded_model_and_needs_no_weights(folder, options, loading):
    loaded = load_backbone(str(folder), ABC, **options)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        path.unlink()
    layout = layout_of(str(folder), 3, **options)
    assert layout == loaded.backbone.layout
    assert group_layers(layout) == loaded.backbone.groups


def test_a_network_that_runs_with_values_only_has_a_layout_too():
    layout = layout_of("torchvision/regnet_x_400mf", 3)
    assert layout.head == ("fc.weight", "fc.bias")
    assert dict(layout.parameters)["fc.bias"] == (3,)


RECIPE = "backbone: {}\ndata: {{path: x, image_size: 64}}\nphases: [{{train: head, epochs: 1}}]\n"


def test_a_planned_layout_follows_the_recipe(tmp_path):
    path = torchvision_folder(tmp_path / "own")
    text = RECIPE.format(path) + "head: {replace: 2}\n"
    layout = planned_layout(parse_recipe(text, "r.yaml"), 5)
    assert layout == layout_of(str(path), 5, image_size=64, replace_layers=2)
    assert (layout.labels, layout.image["size"]) == (5, 64)


def test_a_plan_knows_what_a_run_would_refuse():
    recipe = parse_recipe(RECIPE.format("transformers/vit"), "r.yaml")
    with pytest.raises(BackboneError, match="without weights"):
        planned_layout(recipe, 2)
    recipe = parse_recipe(RECIPE.format("transformers/vit") + "pretrained: false\n", "r.yaml")
    assert planned_layout(recipe, 2).labels == 2
    recipe = parse_recipe(RECIPE.format("timm/resnet5o"), "r.yaml")
    with pytest.raises(BackboneError, match="nearest: resnet50"):
        planned_layout(recipe, 2)


@pytest.mark.parametrize(
    ("fit", "mode"), [(None, "center"), ("crop", "center"), ("squash", "squash"), ("pad", "border")]
)
def test_how_pictures_are_fitted_travels_with_the_model(fit, mode, tmp_path):
    options: dict[str, Any] = {"pretrained": False, "image_size": 64}
    model = load_backbone("timm/resnet10t", ("a", "b"), fit=fit, **options)
    assert model.backbone.image.crop_mode == mode
    save_model(model, tmp_path)
    assert load_model(tmp_path).backbone.image == model.backbone.image


def test_padding_that_would_not_travel_is_refused():
    with pytest.raises(BackboneError, match="fit: pad needs a backbone of timm's"):
        load_backbone("torchvision/resnet18", ("a", "b"), pretrained=False, fit="pad")
    model = load_backbone("torchvision/resnet18", ("a", "b"), pretrained=False, fit="squash")
    assert (model.backbone.image.crop_mode, model.backbone.image.crop_pct) == ("squash", 1.0)


def test_a_label_that_is_there_twice_is_refused():
    with pytest.raises(BackboneError, match="the label 'a' is there twice; give each label one"):
        load_backbone("torchvision/resnet18", ("a", "b", "a"), pretrained=False)
