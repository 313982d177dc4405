"""Augmentation: how a batch of decoded images is varied, and mixed."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_transfer.data.decoding import decode
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.inputs.augmentation import augment, mix, uniforms
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.recipe.specs import Augment

EVERYTHING = Augment(
    crop=(0.35, 1.0), flip=True, vertical_flip=True, color=0.4, erase=0.5, rotate=15.0
)
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def photo(width: int = 90, height: int = 60, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth picture with some noise, unlike any other seed's."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    return torch.stack([torch.from_numpy(decode(photo(seed=n), FIT)) for n in range(13)])


FIT = ImageSettings(24, crop_pct=0.8, interpolation="bilinear")


# --- variation -------------------------------------------------------------------------------


def test_uniforms_are_uniform_uncorrelated_and_never_repeat():
    u = uniforms(torch.arange(20_000), 3, 7, 6)
    assert u.dtype == torch.float64
    assert u.min() >= 0
    assert u.max() < 1
    assert len(u.flatten().unique()) == u.numel()
    for column in u.T:
        counts = torch.histc(column, 20, 0, 1)
        assert ((counts - 1000).abs() < 150).all()
    neighbours = torch.cat((u, uniforms(torch.arange(20_000), 4, 7, 6), u.roll(1, 0)), 1)
    correlation = torch.corrcoef(neighbours.T) - torch.eye(18)
    assert correlation.abs().max() < 0.03


def test_uniforms_depend_on_seed_epoch_index_and_column_alone():
    index = torch.tensor([5, 900, 5])
    u = uniforms(index, 2, 11, 8)
    assert torch.equal(u[0], u[2])
    assert torch.equal(u[1], uniforms(torch.tensor([900]), 2, 11, 8)[0])
    assert torch.equal(u[:, :3], uniforms(index, 2, 11, 3))
    for seed, epoch in ((11, 3), (12, 2), (2, 11), (-1, 2), (2**70, 2)):
        assert not torch.equal(u, uniforms(index, epoch, seed, 8))


@pytest.mark.parametrize(
    "how",
    [
        EVERYTHING,
        Augment(crop=(0.5, 1.0)),
        Augment(flip=True, vertical_flip=True),
        Augment(color=0.5),
        Augment(erase=0.5),
        Augment(rotate=30.0),
    ],
)
def test_a_variation_does_not_depend_on_neighbours_order_or_batch_size(batch, how):
    index = torch.arange(100, 113)
    whole = augment(batch, index, 4, 9, how, FIT)
    assert whole.shape == (13, 3, 24, 24)
    assert whole.dtype == torch.float32
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(batch[order], index[order], 4, 9, how, FIT), whole[order])
    for size in (1, 2, 3, 8):
        parts = [
            augment(batch[start : start + size], index[start : start + size], 4, 9, how, FIT)
            for start in range(0, 13, size)
        ]
        assert torch.equal(torch.cat(parts), whole)
    other = augment(batch, index, 5, 9, how, FIT)
    assert not torch.equal(other, whole)
    assert torch.equal(augment(batch, index, 4, 9, how, FIT), whole)


def test_no_variation_equals_evaluation(batch):
    index = torch.arange(13)
    still = to_model_input(batch, FIT)
    assert torch.equal(augment(batch, index, 0, 0, Augment(), FIT), still)
    # a crop of everything, through the sampling, up to its rounding
    square = ImageSettings(30, interpolation="bilinear")
    whole = augment(batch, index, 0, 0, Augment(rotate=1e-9), square)
    torch.testing.assert_close(whole, to_model_input(batch, square), atol=1e-4, rtol=0)
    cut = augment(batch, index, 0, 0, Augment(rotate=1e-9), FIT)
    torch.testing.assert_close(cut, still, atol=1e-4, rtol=0)


def test_a_flip_is_the_mirror_image_of_about_half(batch):
    pixels, index = batch[:1].repeat(400, 1, 1, 1), torch.arange(400)
    still = to_model_input(batch[:1], FIT)
    for how, axis in ((Augment(flip=True), -1), (Augment(vertical_flip=True), -2)):
        seen = augment(pixels, index, 0, 0, how, FIT)
        mirrored = (seen == still.flip(axis)).flatten(1).all(1)
        assert torch.equal(mirrored, ~(seen == still).flatten(1).all(1))
        assert 150 < mirrored.sum() < 250


def test_a_flip_within_the_sampling_is_the_same_flip(batch):
    index = torch.arange(13)
    plain = augment(batch, index, 0, 0, Augment(flip=True, vertical_flip=True), FIT)
    how = Augment(flip=True, vertical_flip=True, rotate=1e-9)
    torch.testing.assert_close(augment(batch, index, 0, 0, how, FIT), plain, atol=1e-4, rtol=0)


def test_crops_take_the_share_and_the_shape_that_they_should():
    side = 64
    ramp = torch.arange(side, dtype=torch.uint8) * 4
    pixels = torch.stack(
        (ramp[None].expand(side, -1), ramp[:, None].expand(-1, side), ramp[None].expand(side, -1)),
        -1,
    )[None].repeat(500, 1, 1, 1)
    settings = ImageSettings(32, mean=(0,) * 3, std=(1,) * 3)
    x = augment(pixels, torch.arange(500), 0, 0, Augment(crop=(0.3, 0.6)), settings) * 255 / 4
    wide = (x[:, 0, 16, -2] - x[:, 0, 16, 1]) / 29 * 32 / side
    high = (x[:, 1, -2, 16] - x[:, 1, 1, 16]) / 29 * 32 / side
    area, aspect = wide * high, wide / high
    assert 0.29 < area.min() < 0.33
    assert 0.57 < area.max() < 0.61
    assert 0.74 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.35
    assert x[:, 0].min() < 3  # crops reach both edges
    assert x[:, 0].max() > 60


def test_a_rotation_turns_about_the_middle_by_at_most_its_degrees():
    side = 41
    line = torch.zeros((1, side, side, 3), dtype=torch.uint8)
    line[:, 20, 5:36] = 255
    settings = ImageSettings(side, mean=(0,) * 3, std=(1,) * 3)
    x = augment(line.repeat(200, 1, 1, 1), torch.arange(200), 0, 0, Augment(rotate=20.0), settings)
    weight = x[:, 0]
    at = torch.arange(side, dtype=torch.float32) - 20
    down, across = at[None, :, None], at[None, None, :]
    angle = torch.rad2deg(
        torch.atan((weight * down * across).sum((1, 2)) / (weight * across**2).sum((1, 2)))
    )
    assert -20.5 < angle.min() < -17
    assert 17 < angle.max() < 20.5
    assert (weight[:, 19:22, 19:22].amax((1, 2)) > 0.9).all()


def test_colour_keeps_alpha_and_gray_and_stays_in_range(batch):
    index = torch.arange(13)
    alpha = torch.cat((batch, torch.full_like(batch[..., :1], 77)), -1)
    four = ImageSettings(24, channels=4, mean=(0,) * 4, std=(1,) * 4, crop_pct=0.8)
    x = augment(alpha, index, 0, 0, Augment(color=0.9), four)
    assert torch.equal(x[:, 3], torch.full_like(x[:, 3], 77 / 255))
    assert x.min() >= 0
    assert x.max() <= 1
    one = ImageSettings(24, channels=1, mean=(0,), std=(1,), crop_pct=0.8)
    assert augment(batch[..., :1], index, 0, 0, Augment(color=0.9), one).shape == (13, 1, 24, 24)
    gray = batch[..., :1].repeat(1, 1, 1, 3)
    three = ImageSettings(24, mean=(0,) * 3, std=(1,) * 3, crop_pct=0.8)
    x = augment(gray, index, 0, 0, Augment(color=0.5), three)
    assert (x - x[:, :1]).abs().max() < 1e-6


def test_erasing_takes_one_box_from_its_share_of_the_images(batch):
    pixels = batch[:1].repeat(500, 1, 1, 1)
    still = to_model_input(batch[:1], FIT)
    x = augment(pixels, torch.arange(500), 0, 0, Augment(erase=0.3), FIT)
    gone = (x == 0).all(1)
    touched = gone.any(1).any(1)
    assert 110 < touched.sum() < 190
    assert torch.equal(x[~touched], still.expand(int((~touched).sum()), -1, -1, -1))
    area = gone[touched].float().mean((1, 2))
    assert area.max() < 0.37
    for mask in gone[touched][:20]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        high, wide = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert mask.sum() == high * wide


def test_pixels_that_do_not_fit_the_model_are_named():
    with pytest.raises(ValueError, match=r"S at least 24"):
        to_model_input(torch.zeros((2, 8, 8, 3), dtype=torch.uint8), FIT)
    with pytest.raises(ValueError, match="float32"):
        augment(torch.zeros((2, 30, 30, 3)), torch.arange(2), 0, 0, Augment(), FIT)


# --- mixing ----------------------------------------------------------------------------------


def mixed(x, labels, index, all_x, all_labels, **options):
    def partner(indices, epoch):
        return all_x[indices], all_labels[indices]

    return mix(x, labels, index, 2, 5, classes=7, images=len(all_x), partner=partner, **options)


@pytest.mark.parametrize(
    "options",
    [{"mixup": 0.4, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}],
)
def test_mixing_is_a_function_of_the_index_and_targets_add_up(options):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(50, 3, 16, 16, generator=generator)
    labels = torch.arange(50) % 7
    index = torch.arange(50)
    whole, targets = mixed(x, labels, index, x, labels, **options)
    assert targets.shape == (50, 7)
    torch.testing.assert_close(targets.sum(1), torch.ones(50))
    some = torch.tensor([31, 4, 17])
    part, part_targets = mixed(x[some], labels[some], index[some], x, labels, **options)
    assert torch.equal(part, whole[some])
    assert torch.equal(part_targets, targets[some])


def test_targets_are_the_shares_of_the_pixels():
    """With images that are all one colour, the mean pixel shows each label's share."""
    labels = torch.arange(60) % 2
    x = labels[:, None, None, None].float().expand(60, 3, 16, 16).contiguous()
    for options in ({"mixup": 0.5, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}):
        blended, targets = mixed(x, labels, torch.arange(60), x, labels, **options)
        torch.testing.assert_close(blended.mean((1, 2, 3)), targets[:, 1], atol=1e-5, rtol=0)
        assert ((targets[:, 1] > 0.05) & (targets[:, 1] < 0.95)).sum() > 10


def test_mixup_shares_follow_the_beta_distribution():
    labels = torch.zeros(4000, dtype=torch.int64)
    x = torch.ones(4000, 1, 2, 2)
    other = -torch.ones(4000, 1, 2, 2)
    blended, _ = mixed(x, labels, torch.arange(4000), other, labels, mixup=0.4, cutmix=0.0)
    share = (blended[:, 0, 0, 0] + 1) / 2
    assert abs(share.mean() - 0.5) < 0.02
    assert abs(share.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.01  # variance of Beta(a, a)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_an_accelerator_varies_as_the_processor_does(batch):
    index = torch.arange(13)
    here = augment(batch, index, 4, 9, EVERYTHING, FIT)
    there = augment(batch.cuda(), index.cuda(), 4, 9, EVERYTHING, FIT).cpu()
    torch.testing.assert_close(there, here, atol=2e-4, rtol=0)
    assert torch.equal(uniforms(index.cuda(), 1, 2, 9).cpu(), uniforms(index, 1, 2, 9))


def test_real_photos_stay_recognisable(flowers):
    """The mean of many variations is close to the middle of the photo that they come from."""
    files = [sorted(folder.iterdir())[0] for folder in sorted(flowers.iterdir())]
    settings = ImageSettings(48, mean=(0,) * 3, std=(1,) * 3)
    pixels = torch.stack([torch.from_numpy(decode(file, settings)) for file in files])
    still = to_model_input(pixels, settings).mean((2, 3))
    how = Augment(crop=(0.5, 1.0), flip=True, color=0.3)
    views = [augment(pixels, torch.arange(5), epoch, 0, how, settings) for epoch in range(50)]
    assert (torch.stack(views).mean((0, 3, 4)) - still).abs().max() < 0.12
