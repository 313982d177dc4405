"""Bands: any number of channels from arrays and pages, in the scale of 8 bits."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hf_transfer.base.errors import UserError
from hf_transfer.data.array_images import read_array, to_8_bit
from hf_transfer.data.decoding import decode
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.upright import ImageError


def settings(channels: int, size: int = 8) -> ImageSettings:
    return ImageSettings(size, channels, (0.5,) * channels, (0.5,) * channels)


def saved(values: np.ndarray) -> bytes:
    out = BytesIO()
    np.save(out, values)
    return out.getvalue()


RANDOM = np.random.default_rng(0).integers(0, 256, (8, 8, 6), np.uint8)


def test_channels_may_come_first_or_last_or_be_one():
    assert np.array_equal(read_array(saved(RANDOM), 6), RANDOM)
    assert np.array_equal(read_array(saved(RANDOM.transpose(2, 0, 1)), 6), RANDOM)
    assert np.array_equal(read_array(saved(RANDOM[:, :, 0]), 1), RANDOM[:, :, :1])


def test_every_kind_of_number_keeps_its_full_range():
    ends = np.array([[0, 1]])
    for values in (ends.astype(bool), ends.astype(np.float32), (ends * 65535).astype(np.uint16)):
        assert to_8_bit(values).tolist() == [[0, 255]]
    assert to_8_bit(np.arange(256, dtype=np.uint16) * 257).tolist() == list(range(256))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (RANDOM, "8 x 8 x 6 has no side of 5 channels"),
        (RANDOM[0, 0], "has no side of 5 channels"),
        (np.full((4, 4, 5), 2.0), "have no known range"),
        (np.full((4, 4, 5), np.nan), "have no known range"),
        (np.full((4, 4, 5), -1), "have no known range"),
        (np.array([object()] * 5, dtype=object).reshape(1, 1, 5), "of Python objects"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_line(values, says):
    out = BytesIO()
    np.save(out, values, allow_pickle=True)
    with pytest.raises(ImageError, match=says) as caught:
        decode(out.getvalue(), settings(5))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [2, 5, 6])
def test_an_array_is_resized_and_cut_channel_by_channel_as_a_picture_is(channels):
    random = np.random.default_rng(1).integers(0, 256, (20, 30, channels), np.uint8)
    found = decode(saved(random), settings(channels))
    assert found.shape == (8, 8, channels)
    for i in range(channels):
        assert np.array_equal(found[..., [i]], decode(Image.fromarray(random[..., i]), settings(1)))


def test_colours_as_an_array_are_the_same_colours_as_a_picture():
    random = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    usual = ImageSettings(8)
    assert np.array_equal(decode(saved(random), usual), decode(Image.fromarray(random), usual))


def test_a_file_with_a_page_for_each_channel_is_read_and_16_bits_scaled():
    pages = [Image.fromarray(RANDOM[..., i].astype(np.uint16) * 257) for i in range(6)]
    out = BytesIO()
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:])
    assert np.array_equal(decode(out.getvalue(), settings(6)), RANDOM)
    with pytest.raises(
        ImageError, match=r"with 6 pages, and the model sees 5 channels: give \.npy"
    ):
        decode(out.getvalue(), settings(5))


def test_a_picture_of_colours_is_not_six_channels():
    with pytest.raises(ImageError, match="mode RGB with 1 pages, and the model sees 6 channels"):
        decode(Image.new("RGB", (9, 9)), settings(6))


def test_settings_take_any_number_of_channels_from_one():
    assert settings(12).channels == 12
    with pytest.raises(UserError, match="1 or more channels, not 0"):
        settings(0)
