"""A thin network of every family whose frozen prefix is computed once, with random weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_transfer.backbones.from_object import describe
from hf_transfer.data.image_settings import ImageSettings

SIZE = 32  # px of the images
WIDTH = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}


class Timm(nn.Module):
    """A timm network that takes pixel_values."""

    def __init__(self, network: str | nn.Module, **settings: Any) -> None:
        super().__init__()
        named = isinstance(network, str)
        self.net = timm.create_model(network, num_classes=3, **settings) if named else network

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.net(pixel_values)


class Torchvision(nn.Module):
    """A torchvision network that takes pixel_values, its wide dense layers made thin."""

    def __init__(self, network: nn.Module, wide: int, thin: int = 12) -> None:
        super().__init__()
        self.net = network
        layers = [m for m in network.classifier if isinstance(m, nn.Linear)]
        sides = [wide, thin, thin, 3]
        for layer, inside, outside in zip(layers, sides, sides[1:], strict=False):
            place = list(network.classifier).index(layer)
            network.classifier[place] = nn.Linear(inside, outside)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.net(pixel_values)


def _thin_vgg() -> nn.Module:
    thin = torchvision.models.vgg.make_layers([4, "M", 6, "M", 8, 8, "M", 8, 8, "M"])
    with torch.device("meta"):  # its own dense layers have over 100 million weights
        network = torchvision.models.VGG(nn.Identity(), init_weights=False)
    network.features = thin
    return Torchvision(network, 8 * 7 * 7)


def _thin_alexnet() -> nn.Module:
    with torch.device("meta"):
        network = torchvision.models.AlexNet()
    network.features = nn.Sequential(
        nn.Conv2d(3, 4, 11, 4, 2), nn.ReLU(True), nn.Conv2d(4, 6, 5, padding=2), nn.ReLU(True),
        nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    return Torchvision(network, 6 * 6 * 6)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "timm resnet": lambda: Timm("test_resnet"),
    "timm convnext": lambda: Timm("test_convnext"),
    "timm efficientnet": lambda: Timm("test_efficientnet"),
    "timm mobilenet": lambda: Timm("mobilenetv3_small_050"),
    "timm vit": lambda: Timm("test_vit", img_size=SIZE),
    "timm swin": lambda: Timm(
        "swin_tiny_patch4_window7_224", img_size=SIZE, window_size=4, embed_dim=8,
        depths=(1, 2, 2), num_heads=(1, 2, 2),
    ),
    "timm vgg": lambda: Timm(timm.models.vgg.VGG([4, "M", 6, "M", 8, 8, "M"], 3, mlp_ratio=0.005)),
    "transformers vit": lambda: ViTForImageClassification(
        ViTConfig(image_size=SIZE, patch_size=8, intermediate_size=32, num_labels=3, **WIDTH)
    ),
    "transformers dinov2": lambda: Dinov2ForImageClassification(
        Dinov2Config(image_size=SIZE, patch_size=8, mlp_ratio=2, num_labels=3, **WIDTH)
    ),
    "transformers swin": lambda: SwinForImageClassification(
        SwinConfig(
            image_size=SIZE, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=4,
            num_labels=3,
        )
    ),
    "transformers convnext": lambda: ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[4, 8, 8, 12], depths=[1, 1, 2, 1], num_labels=3)
    ),
    "transformers resnet": lambda: ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16], depths=[1, 2, 2], num_labels=3,
                     layer_type="basic")
    ),
    "torchvision alexnet": _thin_alexnet,
    "torchvision vgg": _thin_vgg,
}  # fmt: skip


def make(family: str) -> nn.Module:
    """Return a family's thin network with the same random weights each time."""
    return copy.deepcopy(_made(family))


@functools.cache
def _made(family: str) -> nn.Module:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    head = [name for name, _ in model.named_parameters()][-1].rpartition(".")[0]
    model.backbone = describe(model, [head], image=ImageSettings(SIZE))
    return model
