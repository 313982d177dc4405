"""Letters are a source task: labelled for free, varied, and the same for the same seed."""

import numpy as np
import pytest

from hf_transfer.letters import (
    BOX,
    FONTS,
    LETTERS,
    STROKES,
    LettersSpec,
    contact_sheet,
    letters_set,
    render,
)
from hf_transfer.recipe import UserError

FEW = LettersSpec(per_class=6)


def test_the_same_seed_draws_the_same_letters_bit_for_bit() -> None:
    one, other = letters_set(FEW, 32, seed=3), letters_set(FEW, 32, seed=3)
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])


def test_another_seed_draws_other_letters() -> None:
    one, other = letters_set(FEW, 32, seed=3), letters_set(FEW, 32, seed=4)
    assert not any(np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True))


def test_every_letter_comes_equally_often_whole_chunks_or_not() -> None:
    pixels, labels, names = letters_set(LettersSpec(per_class=29), 20)
    assert pixels.shape == (29 * len(LETTERS), 20, 20, 3)
    assert pixels.dtype == np.uint8
    assert names == tuple(LETTERS)
    assert np.bincount(labels).tolist() == [29] * len(LETTERS)


def test_no_letter_is_blank_and_none_fills_its_image() -> None:
    pixels, _, _ = letters_set(LettersSpec(per_class=40), 32, seed=1)
    bright = (pixels[..., 0] > 90).mean(axis=(1, 2))
    assert bright.min() > 0.01
    assert bright.max() < 0.95
    assert np.quantile(bright, 0.99) < 0.75


def test_the_three_channels_are_equal() -> None:
    pixels, _, _ = letters_set(FEW, 32)
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_every_font_draws_every_letter_differently_from_every_other_letter() -> None:
    drawn = render(LETTERS)
    assert drawn.shape == (len(LETTERS), len(FONTS) * len(STROKES), BOX, BOX)
    for looks in drawn.swapaxes(0, 1):
        assert len({letter.tobytes() for letter in looks}) == len(LETTERS)


def test_letters_can_be_told_apart_by_their_mean_image() -> None:
    train, labels, names = letters_set(LettersSpec(per_class=60), 16, seed=0)
    test, truth, _ = letters_set(LettersSpec(per_class=10), 16, seed=1)
    means = np.stack([train[labels == k].mean(axis=0).ravel() for k in range(len(names))])
    rows = test.reshape(len(test), -1).astype(float)
    nearest = ((rows[:, None] - means[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == truth).mean() > 10 / len(names)


def test_bend_and_coarse_zero_leave_print_that_is_sharp() -> None:
    plain = letters_set(LettersSpec(per_class=4, bend=0.0, coarse=0.0), 32)[0].astype(float)
    coarse = letters_set(LettersSpec(per_class=4, bend=0.0, coarse=1.0), 32)[0].astype(float)
    assert np.abs(np.diff(plain, axis=2)).max() > 1.5 * np.abs(np.diff(coarse, axis=2)).max()


def test_the_contact_sheet_has_a_column_for_each_letter() -> None:
    pixels, labels, names = letters_set(FEW, 32)
    sheet = contact_sheet(pixels, labels, rows=4)
    assert sheet.size == (32 * len(names), 32 * 4)
    assert np.array_equal(np.asarray(sheet)[:32, :32], pixels[0])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"per_class": 0}, "per_class is 0"),
        ({"letters": "AA"}, "different letters"),
        ({"letters": "A1"}, "A-Z and a-z"),
        ({"letters": "A"}, "at least 2"),
        ({"bend": 2.0}, "0..1"),
        ({"coarse": -1.0}, "0..1"),
        ({"count": 3}, "unknown key count; the keys are per_class"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(values: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        LettersSpec.of(values)
    assert "\n" not in str(caught.value)
