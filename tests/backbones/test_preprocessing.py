"""Image processors of every kind: read, they make the same pixels as the processor itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from dicoms import dicom, ramp
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor

from hf_transfer.backbones.load import load_backbone, load_model
from hf_transfer.backbones.preprocessing import (
    processor_config,
    read_processor,
    takes_bgr,
    with_input,
)
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.download import BackboneError
from hf_transfer.base.errors import UserError
from hf_transfer.data.decoding import decode, load_image
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.inputs.model_input import to_model_input

torch.set_num_threads(1)
KINDS: dict[str, dict[str, Any]] = {
    "ViT": {},
    "Beit": {},
    "DeiT": {},
    "Bit": {},
    "CLIP": {},
    "Siglip": {},
    "Levit": {},
    "MobileNetV1": {},
    "MobileNetV2": {},
    "MobileViT": {"size": {"shortest_edge": 288}},
    "Pvt": {},
    "Segformer": {},
    "PoolFormer": {},
    "ConvNext": {"size": {"shortest_edge": 224}},
    "EfficientNet": {},
    "PPLCNet": {},
}


def _picture() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((400, 300), Image.Resampling.BICUBIC)


def _ours(image: ImageSettings) -> torch.Tensor:
    return to_model_input(torch.from_numpy(decode(_picture(), image))[None], image)


@pytest.mark.parametrize("kind", [*KINDS, "ConvNext of 384 px", "EfficientNet with an offset"])
def test_a_processor_of_each_kind_is_read_to_the_same_pixels(kind):
    options = KINDS.get(kind, {"do_center_crop": False})
    if kind.endswith("offset"):
        options = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False}
    processor = getattr(transformers, f"{kind.partition(' ')[0]}ImageProcessor")(**options)
    image = read_processor(processor, kind)
    theirs = processor(_picture(), return_tensors="pt")["pixel_values"]
    if takes_bgr(processor):
        theirs = theirs.flip(1)  # the loader turns the first layer round instead
    ours = _ours(image)
    assert ours.shape == theirs.shape
    span = (theirs.max() - theirs.min()) / 255
    assert (ours - theirs).abs().max() < 2.5 * span
    assert (ours - theirs).abs().mean() < 0.1 * span


@pytest.mark.parametrize(
    "image",
    [
        ImageSettings(32, crop_pct=0.875, interpolation="bilinear"),
        ImageSettings(32, crop_mode="squash"),
        ImageSettings(28, crop_pct=0.875, crop_mode="squash", interpolation="lanczos"),
        ImageSettings(32, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 2.0), interpolation="nearest"),
        ImageSettings(32, channels=1, mean=(0.4,), std=(0.3,)),
    ],
)
def test_what_is_written_is_read_back(image):
    config = processor_config(image)
    kind = config.pop("image_processor_type")
    assert kind == "CLIPImageProcessor"
    found = read_processor(CLIPImageProcessor(**config), "here")
    assert found.stored == image.stored
    assert found.crop_pct == pytest.approx(image.crop_pct, abs=0.02)
    for value in ("size", "channels", "interpolation", "crop_mode"):
        assert getattr(found, value) == getattr(image, value)
    assert found.mean == pytest.approx(image.mean)
    assert found.std == pytest.approx(image.std)


def test_other_channels_have_statistics_of_the_colours():
    image = ImageSettings(32, mean=(0.1, 0.2, 0.6), std=(0.2, 0.3, 0.4))
    gray = with_input(image, None, 1)
    assert (gray.mean, gray.std) == (pytest.approx((0.3,)), pytest.approx((0.3,)))
    assert with_input(image, None, 2).mean == (0.1, 0.2)
    assert with_input(image, None, 4).std == (0.2, 0.3, 0.4, 0.2)
    many = with_input(image, 64, 6)
    assert (many.size, many.channels, many.mean) == (64, 6, (0.1, 0.2, 0.6) * 2)
    assert with_input(many, None, 3) == with_input(image, 64, None)
    assert with_input(image, None, None) == image
    with pytest.raises(UserError, match="-1"):
        with_input(image, None, -1)


def test_a_processor_that_resizes_to_no_size_is_refused_in_one_line():
    with pytest.raises(BackboneError, match="Perceiver") as caught:
        read_processor(transformers.PerceiverImageProcessor(), "alice/net")
    assert "alice/net" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["timm/test_resnet", "torchvision/squeezenet1_1"])
def test_a_saved_model_reads_dicom_files_as_it_was_trained(name, tmp_path):
    path = dicom(tmp_path / "a.dcm", ramp(64, most=3000), WindowCenter=1500, WindowWidth=3000)
    options = {"pretrained": False, "image_size": 64}
    model = load_backbone(name, ("a", "b"), window=(300, 200), frame=1, **options)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert (again.backbone.image.window, again.backbone.image.frame) == ((300.0, 200.0), 1)
    pixels = decode(path, again.backbone.image)
    image = load_image(path, window=(300, 200))
    assert np.array_equal(pixels, decode(image, again.backbone.image))
    assert not np.array_equal(pixels, decode(load_image(path), again.backbone.image))
    AutoImageProcessor.from_pretrained(tmp_path / "model")  # others read the rest of it
    further = load_backbone(str(tmp_path / "model"), ("c", "d"))
    assert further.backbone.image.window == (300.0, 200.0)
    plain = load_backbone(name, ("a", "b"), **options)
    save_model(plain, tmp_path / "plain")
    assert "dicom" not in (tmp_path / "plain" / "preprocessor_config.json").read_text()
    settings = tmp_path / "model" / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("200.0", '"wide"'))
    with pytest.raises(BackboneError, match=r"cannot read .*preprocessor_config.json"):
        load_model(tmp_path / "model")
