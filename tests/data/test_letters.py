"""Letters are a source task: labelled for free, varied, and the same for the same seed."""

from pathlib import Path

import numpy as np
import pytest

from hf_transfer.base.errors import UserError
from hf_transfer.base.files import MARK
from hf_transfer.data.letters import (
    BOX,
    FONTS,
    LETTERS,
    STROKES,
    contact_sheet,
    font_files,
    letters_set,
    render,
    write_letters,
)
from hf_transfer.recipe.specs import LettersSpec

FEW = LettersSpec(fonts=4, images=6 * len(LETTERS))


@pytest.fixture(scope="module")
def few() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    return letters_set(FEW, 32, seed=3)


def test_the_same_seed_draws_the_same_letters_bit_for_bit(few) -> None:
    one, other = few, letters_set(FEW, 32, seed=3)
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])


def test_another_seed_draws_other_letters(few) -> None:
    one, other = few, letters_set(FEW, 32, seed=4)
    assert not any(np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True))


def test_every_letter_comes_equally_often_whole_chunks_or_not() -> None:
    pixels, labels, names = letters_set(LettersSpec(images=30 * len(LETTERS) - 1), 20)
    assert pixels.shape == (29 * len(LETTERS), 20, 20, 3)
    assert pixels.dtype == np.uint8
    assert names == tuple(LETTERS)
    assert np.bincount(labels).tolist() == [29] * len(LETTERS)


def test_no_letter_is_blank_and_none_fills_its_image() -> None:
    pixels, _, _ = letters_set(LettersSpec(fonts=22, images=1500), 32, seed=1)
    bright = (pixels[..., 0] > 90).mean(axis=(1, 2))
    assert bright.min() > 0.01
    assert bright.max() < 0.95
    assert np.quantile(bright, 0.99) < 0.75


def test_the_three_channels_are_equal(few) -> None:
    pixels, _, _ = few
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_every_font_draws_every_letter_differently_from_every_other_letter() -> None:
    drawn = render(FONTS)
    assert drawn.shape == (len(LETTERS), len(FONTS) * len(STROKES), BOX, BOX)
    for looks in drawn.swapaxes(0, 1):
        assert len({letter.tobytes() for letter in looks}) == len(LETTERS)


def test_letters_can_be_told_apart_by_their_mean_image() -> None:
    train, labels, names = letters_set(LettersSpec(images=2200), 16, seed=0)
    test, truth, _ = letters_set(LettersSpec(images=370), 16, seed=1)
    means = np.stack([train[labels == k].mean(axis=0).ravel() for k in range(len(names))])
    rows = test.reshape(len(test), -1).astype(float)
    nearest = ((rows[:, None] - means[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == truth).mean() > 10 / len(names)


def test_the_contact_sheet_has_a_column_for_each_letter(few) -> None:
    pixels, labels, names = few
    sheet = contact_sheet(pixels, labels, rows=4)
    assert sheet.size == (32 * len(names), 32 * 4)
    assert np.array_equal(np.asarray(sheet)[:32, :32], pixels[0])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (LettersSpec(fonts=23), "fonts is 23; matplotlib carries 1 to 22"),
        (LettersSpec(images=36), "images is 36; one a letter is 37"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(spec: LettersSpec, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        letters_set(spec)
    assert "\n" not in str(caught.value)


def test_a_font_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"lack Nowhere\.ttf; reinstall matplotlib"):
        font_files(["Nowhere"])


def test_letters_become_a_labelled_folder_and_a_finished_one_is_left_alone(tmp_path: Path) -> None:
    spec = LettersSpec(fonts=2, images=2 * len(LETTERS))
    folder = write_letters(spec, tmp_path / "run" / "letters")
    names = sorted(place.name for place in folder.iterdir() if place.name != MARK)
    assert len(names) == len(LETTERS)
    assert {"upper-A", "lower-a"} <= set(names)
    assert [len(list((folder / name).iterdir())) for name in names] == [2] * len(LETTERS)
    assert [place.name for place in folder.parent.iterdir()] == ["letters"]
    (folder / "upper-A" / "mark").touch()
    assert write_letters(spec, folder) == folder
    assert (folder / "upper-A" / "mark").exists()
