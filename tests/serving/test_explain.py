"""Heat maps point at what a label is read from, and come from the weights, not from the image."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import picture
from PIL import Image
from tiny_folders import dinov2_folder, resnet_folder, stir, vit_folder
from tiny_model import tiny_run
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

import hf_transfer
from hf_transfer.backbones.load import load_backbone, load_model
from hf_transfer.base.errors import UserError
from hf_transfer.cli import main
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.serving.explain import _method, explain
from hf_transfer.serving.pictures import batches

COLOURS = ("red", "green")
SIDE, SQUARE = 32, 10


def squares(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise uint8 (N, 32, 32, 3) with a red square, a green one, both or none; which are there
    (N, 2), and where: masks (N, 2, 32, 32)."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 90, (count, SIDE, SIDE, 3), dtype=np.uint8)
    there = random.random((count, 2)) < 0.6
    masks = np.zeros((count, 2, SIDE, SIDE), bool)
    for image, mask, colours in zip(pixels, masks, map(np.flatnonzero, there), strict=True):
        x, y = random.integers(0, SIDE - SQUARE + 1, (2, 2))
        while len(colours) == 2 and abs(x[0] - x[1]) < SQUARE and abs(y[0] - y[1]) < SQUARE:
            x, y = random.integers(0, SIDE - SQUARE + 1, (2, 2))
        for colour in colours:
            place = np.s_[y[colour] : y[colour] + SQUARE, x[colour] : x[colour] + SQUARE]
            image[place] = 20
            image[place][..., colour] = 230
            mask[colour][place] = True
    return pixels, there, masks


def taught(source: str) -> Any:
    """A small network that has learnt to tell red squares and green ones."""
    model = load_backbone(
        source, COLOURS, pretrained=False, image_size=SIDE, task="multi_label", seed=1
    )
    pixels, there, _ = squares(640, 0)
    x = to_model_input(torch.from_numpy(pixels), model.backbone.image)
    y = torch.from_numpy(there).float()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    torch.manual_seed(0)
    model.train()
    for _ in range(6):
        for rows in torch.randperm(len(x)).split(32):
            loss = binary_cross_entropy_with_logits(model(pixel_values=x[rows]).logits, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module", params=["convolutional", "transformer"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    if request.param == "convolutional":
        return taught(str(resnet_folder(folder)))
    return taught(str(vit_folder(folder, patch_size=4)))


def area_under_curve(heat: np.ndarray, mask: np.ndarray) -> float:
    """The chance that a pixel in the mask is hotter than one outside."""
    inside, outside = heat[mask][:, None], heat[~mask][None]
    return float((inside > outside).mean() + (inside == outside).mean() / 2)


def test_maps_are_hot_where_the_label_is_and_not_where_another_is(model):
    pixels, there, masks = squares(60, 1)
    for column, colour in enumerate(COLOURS):
        found = explain(model, pixels, label=colour)
        right = there[:, column] == [one.probability > 0.5 for one in found]
        assert right.mean() > 0.95
        both = np.flatnonzero(there.all(axis=1))
        pairs = [(found[row].heat, masks[row]) for row in both]
        own = np.mean([area_under_curve(heat, mask[column]) for heat, mask in pairs])
        other = np.mean([area_under_curve(heat, mask[1 - column]) for heat, mask in pairs])
        assert own > 0.8
        assert own > other + 0.2


def test_random_weights_give_another_map(model):
    """The sanity check of Adebayo et al. 2018: a map that ignores the weights shows edges."""
    pixels, there, _ = squares(40, 2)
    pixels = pixels[there[:, 0]]
    before = [one.heat for one in explain(model, pixels, label="red")]
    again = [one.heat for one in explain(model, pixels, label="red", batch_size=3)]
    assert np.allclose(before, again, atol=1e-4)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter.mean() + noise * parameter.std(correction=0))
    after = [one.heat for one in explain(model, pixels, label="red")]
    model.load_state_dict(kept)
    alike = [_correlation(one, other) for one, other in zip(before, after, strict=True)]
    assert abs(np.mean(alike)) < 0.5


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.ravel() - one.mean(), other.ravel() - other.mean()
    return float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-9))


def test_where_places_are_averaged_the_map_is_the_class_activation_map():
    model = stir(load_backbone("timm/test_resnet", ("a", "b", "c"), pretrained=False))
    images = [picture(i) for i in range(3)]
    (batch,) = batches(images, model.backbone.image)
    with torch.no_grad():
        x = to_model_input(batch.pixels, model.backbone.image)
        places = model.timm_model.forward_features(x)
        weights = model.timm_model.get_classifier().weight[1].detach()
    cam = (places * weights[:, None, None]).sum(dim=1, keepdim=True).relu()
    side = model.backbone.image.size
    cam = interpolate(cam, (side, side), mode="bilinear")[:, 0].numpy()
    found = explain(model, images, label="b")
    for one, expected in zip(found, cam, strict=True):
        assert np.allclose(one.heat, expected / max(expected.max(), 1e-9), atol=1e-5)


def test_a_layer_of_few_places_is_passed_over_for_one_that_tells_where():
    model = stir(load_backbone("timm/test_resnet", ("a", "b"), pretrained=False, image_size=64))
    (batch,) = batches([picture(1)], model.backbone.image)
    x = to_model_input(batch.pixels, model.backbone.image)
    with torch.no_grad():
        assert model.timm_model.forward_features(x).shape[2:] == (2, 2)
    columns = torch.zeros(1, dtype=torch.long)
    assert _method(model, x, columns)(x, columns).shape == (1, 4, 4)


BACKBONES: dict[str, dict[str, Any]] = {
    "timm/test_resnet": {"image_size": 64},
    "timm/test_vit": {"image_size": 64},
    "timm/test_convnext": {"image_size": 96},
    "timm/test_efficientnet": {"image_size": 64},
    "timm/mobilenetv3_small_050": {"image_size": 64, "channels": 1},
    "torchvision/squeezenet1_1": {"image_size": 64},
    "torchvision/resnet18": {"image_size": 64, "channels": 6},
    "vit": {},
    "resnet": {},
    "dinov2": {},
}
FOLDERS = {"vit": vit_folder, "resnet": resnet_folder, "dinov2": dinov2_folder}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_librarys_networks_have_maps_and_stay_as_they_are(name, tmp_path):
    options: dict[str, Any] = dict(BACKBONES[name])
    source = str(FOLDERS[name](tmp_path)) if name in FOLDERS else name
    if name not in FOLDERS:
        options["pretrained"] = False
    model = stir(load_backbone(source, ("a", "b", "c"), **options))
    model.train()
    image = model.backbone.image
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, 50, 70, image.channels), dtype=np.uint8)
    found = explain(model, images, label=["a", "b", "c"])
    assert [one.label for one in found] == ["a", "b", "c"] * 2
    for one in found:
        assert one.heat.shape == (image.size, image.size)
        assert one.image.shape == (image.size, image.size, image.channels)
        assert one.heat.dtype == np.float32
        assert 0 <= one.heat.min() <= one.heat.max() <= 1
        assert one.overlay().size == (image.size, image.size)
    assert any(one.heat.max() == 1 for one in found)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("explain") / "run")


def test_the_likeliest_label_is_explained_and_an_unreadable_image_named(run, tmp_path):
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    files = [tmp_path / "bad.png", tmp_path / "a.png"]
    bad, good = explain(run, files)
    (prediction,) = hf_transfer.predict(run, files[1])
    assert (good.label, good.probability) == prediction.labels[0]
    assert "bad.png" in bad.error
    with pytest.raises(UserError, match="bad.png"):
        bad.overlay()
    method = hf_transfer.load(run).explain(files[1], label="rose")
    assert np.array_equal(method[0].heat, hf_transfer.explain(run, files[1], label="rose")[0].heat)
    with pytest.raises(UserError, match="did you mean 'rose'"):
        explain(load_model(run), files, label="rosé")


def test_a_regression_is_explained_by_target():
    targets = ("height", "width")
    model = load_backbone("timm/test_resnet", targets, pretrained=False, task="regression")
    first, second = explain(stir(model), picture(1), label=list(targets))
    assert (first.label, first.probability) == ("height", None)
    assert first.value != second.value
    assert explain(model, picture(1))[0].label == "height"


def test_the_command_writes_a_png_for_each_image_and_label(run, tmp_path, capsys, monkeypatch):
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        picture(1).save(tmp_path / folder / "a.png")
    out = tmp_path / "maps"
    words = ["explain", str(run), str(tmp_path / "one"), str(tmp_path / "other")]
    assert main([*words, "--label", "rose", "--label", "tulip", "--out", str(out)]) == 0
    names = ["a-rose-2.png", "a-rose.png", "a-tulip-2.png", "a-tulip.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    told = capsys.readouterr().out
    assert re.search(rf"a-rose.png   rose 0\.\d+ in {tmp_path / 'one' / 'a.png'}\n", told)
    assert re.search(rf"a-rose-2.png   rose 0\.\d+ in {tmp_path / 'other' / 'a.png'}\n", told)
    monkeypatch.setattr(
        "hf_transfer.serving.explain._heat", lambda found, side: np.zeros((1, 64, 64))
    )
    assert main(["explain", str(run), str(tmp_path / "one"), "--out", str(out)]) == 0
    assert "   no part of the image speaks for it" in capsys.readouterr().out
    with Image.open(out / "a-rose.png") as image:
        assert image.size == (384, 384)  # six times the 64 px that the network sees
