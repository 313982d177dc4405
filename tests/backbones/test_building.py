"""Networks for other inputs than their checkpoint's: channels, sizes, the order of colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folders import (
    FOLDERS,
    dinov2_folder,
    logits,
    pixels,
    resnet_folder,
    stir,
    tensors,
    timm_folder,
    vit_folder,
)
from transformers import (
    BeitForImageClassification,
    DeiTForImageClassification,
    MobileViTConfig,
    MobileViTForImageClassification,
    MobileViTImageProcessor,
)

from hf_transfer.backbones.load import layout_of, load_backbone, load_model
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.download import BackboneError

torch.set_num_threads(1)
ABC = ("a", "b", "c")


@pytest.fixture(params=FOLDERS)
def folder(request: Any, tmp_path: Path) -> Path:
    """A pretrained folder of each library, for three labels."""
    return FOLDERS[request.param](tmp_path / "own")


def test_gray_images_are_seen_as_the_colour_network_sees_them(folder):
    """The first layer is summed: one channel gives what three equal ones gave."""
    usual, gray = load_backbone(str(folder)), load_backbone(str(folder), channels=1)
    x = pixels(usual.backbone.image.size, 1)
    assert torch.allclose(logits(gray, x), logits(usual, x.expand(-1, 3, -1, -1)), atol=1e-5)
    image = gray.backbone.image
    assert (image.channels, len(image.mean), len(image.std)) == (1, 1, 1)


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_more_channels_repeat_the_colours_weights_at_the_same_strength(folder, channels):
    usual = load_backbone(str(folder), ABC, seed=4)
    model = load_backbone(str(folder), ABC, channels=channels, seed=4)
    (name,) = model.backbone.layout.refitted
    before, after = tensors(usual)[name], tensors(model)[name]
    for i in range(channels):
        assert torch.allclose(after[:, i], before[:, i % 3] * 3 / channels)
    same = set(tensors(usual)) - {name, *model.backbone.layout.head}
    assert all(torch.equal(tensors(usual)[n], tensors(model)[n]) for n in same)
    assert model.backbone.image.channels == channels
    assert logits(model, pixels(usual.backbone.image.size, channels)).shape == (2, 3)
    assert model.backbone.layout.image["channels"] == channels


def test_nothing_is_adapted_where_the_channels_are_the_checkpoints(folder, tmp_path):
    assert load_backbone(str(folder), ABC).backbone.layout.refitted == ()
    save_model(load_backbone(str(folder), ABC, channels=1), tmp_path / "gray")
    again = load_backbone(str(tmp_path / "gray"), ABC)
    assert (again.backbone.layout.refitted, again.backbone.image.channels) == ((), 1)
    assert load_backbone(str(tmp_path / "gray"), ABC, channels=3).backbone.layout.refitted != ()
    assert (
        load_backbone(str(folder), ABC, channels=4, pretrained=False).backbone.layout.refitted == ()
    )


SIZES = {
    "timm vit": (lambda path: timm_folder(path, "test_vit", img_size=64), 96, "pos_embed"),
    "timm swin": (
        lambda path: timm_folder(
            path, "swin_tiny_patch4_window7_224", embed_dim=24, depths=(1, 1), num_heads=(1, 2)
        ),
        112,
        None,
    ),
    "vit": (vit_folder, 48, "vit.embeddings.position_embeddings"),
    "deit": (
        lambda path: vit_folder(path, DeiTForImageClassification),
        48,
        "deit.embeddings.position_embeddings",
    ),
    "beit": (
        lambda path: vit_folder(
            path,
            BeitForImageClassification,
            use_absolute_position_embeddings=True,
            use_relative_position_bias=True,
        ),
        64,
        None,
    ),
    "dinov2": (dinov2_folder, 84, None),
    "resnet": (resnet_folder, 40, None),
}


@pytest.mark.parametrize("kind", SIZES)
def test_another_input_size_changes_position_embeddings_only(kind, tmp_path):
    make, size, changed = SIZES[kind]
    path = make(tmp_path / "own")
    usual, model = load_backbone(str(path)), load_backbone(str(path), image_size=size)
    assert model.backbone.image.size == size
    assert logits(model, pixels(size)).shape == (2, 3)
    before, after = dict(usual.named_parameters()), dict(model.named_parameters())
    differ = {n.removeprefix(model.backbone.prefix) for n, p in after.items()
              if p.shape != before[n].shape or not torch.equal(p, before[n])}  # fmt: skip
    assert (changed in differ) if changed else not differ
    assert all("position" in name or "pos_embed" in name for name in differ)
    save_model(model, tmp_path / "saved")
    assert torch.equal(
        logits(model, pixels(size)), logits(load_model(tmp_path / "saved"), pixels(size))
    )


@pytest.mark.parametrize(
    ("backbone_id", "size", "word"),
    [
        ("torchvision/vgg11", 16, "224"),
        ("torchvision/maxvit_t", 96, "partition"),
        ("torchvision/vit_b_16", 100, "patch size"),
        ("timm/maxvit_tiny_tf_224", 240, "window"),
        ("timm/levit_128s", 1, "224"),
    ],
)
def test_a_size_that_a_backbone_cannot_take_is_one_line(backbone_id, size, word):
    with pytest.raises(BackboneError, match=word) as caught:
        layout_of(backbone_id, 3, image_size=size)
    assert f"{size} px" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_size_that_a_folder_cannot_take_is_one_line(tmp_path):
    path = vit_folder(tmp_path / "own")
    with pytest.raises(BackboneError) as caught:
        load_backbone(str(path), ABC, image_size=4)
    assert "\n" not in str(caught.value)


def test_a_network_that_takes_bgr_is_turned_to_rgb(tmp_path):
    sizes = {"hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [4, 4, 4, 4, 4, 4, 8]}
    config = MobileViTConfig(**sizes, image_size=64, num_attention_heads=2, num_labels=3)
    network = stir(MobileViTForImageClassification(config))
    network.save_pretrained(tmp_path)
    square = {"shortest_edge": 64}
    MobileViTImageProcessor(size=square, crop_size={"height": 64, "width": 64}).save_pretrained(
        tmp_path
    )
    model = load_backbone(str(tmp_path))
    assert torch.allclose(logits(model, pixels(64)), logits(network, pixels(64).flip(1)), atol=1e-5)
    save_model(model, tmp_path / "saved")
    assert torch.equal(
        logits(load_model(tmp_path / "saved"), pixels(64)), logits(model, pixels(64))
    )
