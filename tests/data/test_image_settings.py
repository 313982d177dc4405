"""Settings: how pictures are fitted to the square, and how much of them is seen."""

import numpy as np
import pytest
from PIL import Image

from hf_transfer.base.errors import UserError
from hf_transfer.data.decoding import decode
from hf_transfer.data.image_settings import ImageSettings, fitted, share_lost

USUAL = ImageSettings(40, crop_pct=0.8)


@pytest.mark.parametrize("fit", [None, "crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(100, 50), (50, 100), (64, 64), (120, 40)])
def test_the_share_that_is_lost_is_the_share_of_pixels_that_are_not_seen(fit, size):
    settings = fitted(USUAL, fit)
    rows, columns = np.mgrid[: size[1], : size[0]]
    cells = (rows * 12 // size[1] * 12 + columns * 12 // size[0]).astype(np.uint8)
    gray = ImageSettings(
        settings.size, 1, (1.0,), (1.0,), "nearest", settings.crop_pct, settings.crop_mode
    )
    pixels = decode(Image.fromarray(cells), gray)[..., 0]
    start = gray.middle(gray.stored)
    seen = pixels[start : start + gray.size, start : start + gray.size]
    share = len(set(seen.ravel().tolist()) - {255}) / 144
    assert abs(1 - share - share_lost(settings, np.array([size]))) < 0.15


def test_squashed_and_padded_pictures_are_seen_whole():
    sizes = np.array([[100, 50], [30, 90]])
    assert share_lost(fitted(USUAL, "squash"), sizes) == 0
    assert share_lost(fitted(USUAL, "pad"), sizes) == 0
    assert share_lost(USUAL, sizes) == pytest.approx(1 - 0.64 * (1 / 2 + 1 / 3) / 2)
    assert fitted(USUAL, None) is USUAL
    assert share_lost(USUAL, np.empty((0, 2))) == 0


@pytest.mark.parametrize(("given", "says"), [({"size": 0}, "got 0"), ({"crop_pct": 2}, "got 2")])
def test_only_the_setting_that_is_out_of_range_is_named(given, says):
    with pytest.raises(UserError, match=f"{next(iter(given))} must be .*{says}"):
        ImageSettings(**{"size": 40, **given})
