"""The quickstart's digits are real, the test images never change, and draws are nested."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_transfer.base.errors import UserError
from hf_transfer.data.decoding import decode
from hf_transfer.data.digits import TEST_PER_CLASS, Digits, load_digits, write_examples
from hf_transfer.data.image_settings import ImageSettings

SETTINGS = ImageSettings(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.95)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits(SETTINGS)


def _keys(pixels: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in pixels}


def test_all_digits_are_either_tested_on_or_drawn_from_and_none_twice(digits: Digits) -> None:
    assert len(digits.test) + len(digits.pool) == 1797
    assert digits.test.class_counts == (TEST_PER_CLASS,) * 10
    assert not _keys(digits.test.pixels) & _keys(digits.pool.pixels)


def test_loading_again_gives_the_same_test_images(digits: Digits) -> None:
    again = load_digits(SETTINGS)
    assert np.array_equal(again.test.pixels, digits.test.pixels)
    assert again.fingerprint == digits.fingerprint


def test_digits_are_white_on_black_as_the_letters_are(digits: Digits) -> None:
    assert digits.test.pixels.shape[1:] == (33, 33, 3)
    assert 0.1 < (digits.test.pixels.mean() / 255) < 0.5
    zeros = digits.test.pixels[digits.test.labels == 0].mean(axis=(0, 3))
    assert zeros[16, 16] < zeros[:, 9].max()  # the hole of a nought is dark, its sides are bright


def test_a_draw_is_balanced_and_holds_the_smaller_draw_of_the_same_seed(digits: Digits) -> None:
    two, five = digits.draw(2, seed=1), digits.draw(5, seed=1)
    assert two.class_counts == (2,) * 10
    assert five.class_counts == (5,) * 10
    assert _keys(two.pixels) <= _keys(five.pixels)


def test_another_seed_draws_others(digits: Digits) -> None:
    assert _keys(digits.draw(2, seed=1).pixels) != _keys(digits.draw(2, seed=2).pixels)


def test_more_than_the_pool_holds_is_refused_in_one_line(digits: Digits) -> None:
    with pytest.raises(UserError, match=r"105 is too many; .* leaves 1 to 104"):
        digits.draw(105, seed=0)


def test_an_example_file_shows_the_digit_that_was_tested(digits: Digits, tmp_path: Path) -> None:
    paths = write_examples(digits, tmp_path)
    assert len(paths) == 20
    assert paths[0].name == "digit-0-1.png"
    shown = decode(paths[0], SETTINGS).astype(float)
    with Image.open(paths[0]) as image:
        assert image.size == (128, 128)
    tested = digits.test.pixels[np.flatnonzero(digits.test.labels == 0)[0]].astype(float)
    assert np.abs(shown - tested).mean() < 8
