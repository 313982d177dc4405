"""A new head starts from next to nothing, whatever its library does: the first loss is ln C."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small import COLD, arguments, changed, images, state
from tiny_folders import FOLDERS, dinov2_folder, resnet_folder, tensors, vit_folder
from torch import nn
from transformers import DeiTForImageClassificationWithTeacher

from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.new_head import BIAS, start_small
from hf_transfer.training.trainer import TransferTrainer

torch.set_num_threads(1)
# One or two of each kind of head: dense, 1x1 convolution, of several layers, two, behind a norm.
SAMPLE = {
    "timm/test_resnet": 32, "timm/test_vit": 32, "timm/test_efficientnet": 32,
    "timm/test_efficientnet_gn": 32, "timm/test_efficientnet_evos": 32, "timm/test_nfnet": 32,
    "timm/test_convnext": 32, "timm/test_mambaout": 32, "timm/mobilenetv3_small_050": 32,
    "timm/mobilenetv4_conv_small_035": 32, "timm/mnasnet_small": 32, "timm/lcnet_035": 32,
    "timm/tf_efficientnet_lite0": 32, "timm/tf_efficientnetv2_b0": 32, "timm/dla46_c": 32,
    "timm/efficientvit_b0": 32, "timm/caformer_s18": 32, "timm/levit_128s": 224,
    "timm/crossvit_tiny_240": 240, "timm/repvit_m0_9": 32, "timm/vit_tiny_patch16_224": 32,
    "torchvision/mobilenet_v3_small": 32, "torchvision/mnasnet0_5": 32,
    "torchvision/efficientnet_b0": 32, "torchvision/squeezenet1_1": 64,
    "torchvision/regnet_y_400mf": 32, "torchvision/swin_t": 32, "torchvision/convnext_tiny": 32,
}  # fmt: skip
PAIR = ("a", "b")


def first_loss(model: nn.Module, labels: torch.Tensor) -> float:
    """Return a model's loss on random images in training mode, as the first step sees it."""
    image = model.backbone.image
    size = (len(labels), image.channels, image.size, image.size)
    x = torch.randn(size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.train()(pixel_values=x, labels=labels).loss.item()


@pytest.mark.parametrize("name", SAMPLE)
def test_the_first_loss_is_that_of_a_guess(name):
    model = load_backbone(name, PAIR, pretrained=False, image_size=SAMPLE[name])
    assert first_loss(model, torch.arange(8) % 2) == pytest.approx(math.log(2), rel=0.02)


@pytest.mark.parametrize(
    "make",
    [
        *FOLDERS.values(),
        resnet_folder,
        dinov2_folder,
        lambda path: vit_folder(path, DeiTForImageClassificationWithTeacher),
    ],
)
@pytest.mark.parametrize("count", [2, 40])
def test_the_first_loss_on_pretrained_weights_is_that_of_a_guess(make, count, tmp_path):
    model = load_backbone(str(make(tmp_path / "own")), [f"label {i}" for i in range(count)])
    assert first_loss(model, torch.arange(8) % count) == pytest.approx(math.log(count), rel=0.02)


@pytest.mark.parametrize("name", ["timm/test_efficientnet_gn", "torchvision/squeezenet1_1"])
def test_other_tasks_start_from_even_odds_and_from_the_mean(name):
    options: dict[str, Any] = {"pretrained": False, "image_size": 64}
    several = load_backbone(name, PAIR, task="multi_label", **options)
    loss = first_loss(several, torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    assert loss == pytest.approx(math.log(2), rel=0.02)
    numbers = load_backbone(name, PAIR, task="regression", **options)  # standard: mean 0, std 1
    assert first_loss(numbers, torch.zeros(2, 2)) < 0.01


@pytest.mark.parametrize("name", ["timm/test_efficientnet", "timm/test_vit"])
def test_everything_moves_from_the_first_step_on(name, tmp_path: Path):
    """A head of zeros would stop the gradient of all that lies below it."""
    model = load_backbone(name, ("cat", "dog", "fox"), pretrained=False, image_size=32)
    before = state(model)
    step = {**COLD, "steps": 1, "weight_decay": 0.0, "best": "last"}
    del step["epochs"]
    trainer = TransferTrainer(model, arguments(tmp_path), [step], train_dataset=images())
    trainer.train()
    assert trainer.reports[0].checks["unmoved"] == []
    assert set(dict(model.named_parameters())) <= changed(before, state(model))


def test_a_relu_after_the_last_layer_starts_open():
    """SqueezeNet's logits pass a ReLU: what it closes on every image never trains."""
    for seed in range(3):
        model = load_backbone(
            "torchvision/squeezenet1_1", list("abcdefgh"), pretrained=False, image_size=64,
            seed=seed,
        )  # fmt: skip
        assert (model(torch.randn(2, 3, 64, 64)).logits > 0).all()


@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v3_small"])
def test_only_the_last_of_several_new_layers_starts_small(name):
    model = load_backbone(f"torchvision/{name}", PAIR, pretrained=False, replace_layers=2)
    *inner, weight, bias = model.backbone.layout.head
    own = tensors(model)
    assert len(inner) == 2
    assert own[inner[0]].std() > 1e-3
    assert own[weight].abs().max() < 1e-4
    assert (own[bias] == BIAS).all()


def test_a_norm_over_the_labels_starts_small():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    names = [name for name, _ in network.named_parameters()]
    start_small(network, names, 3)
    assert network(torch.randn(8, 4)).abs().max() < 0.01
