"""Pretexts: pictures and targets are a pure function of (seed, epoch, index)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small import images, network

from hf_transfer.data.image_set import FrameSet, ImageSet
from hf_transfer.inputs.model_input import to_model_input
from hf_transfer.inputs.pretexts import STEP, pretext_of
from hf_transfer.recipe.specs import Augment, PhaseSpec
from hf_transfer.recipe.tasks import PRETEXTS, SHIFTS, TASKS

IMAGE = network().backbone.image
VARIED = PhaseSpec("all", epochs=1, augment=Augment(crop=(0.3, 1.0), flip=True, color=0.3))
STILL = PhaseSpec("all", epochs=1)


def made(task, rows, epoch=0, seed=0, spec=VARIED):
    batch = images().__getitems__(rows)
    return pretext_of(task, spec, seed).training_inputs(batch, IMAGE, epoch, seed, spec)


def test_other_tasks_have_no_pretext():
    assert pretext_of("classification", VARIED, 0) is None


@pytest.mark.parametrize("task", PRETEXTS)
def test_an_image_s_pictures_do_not_depend_on_its_batch(task):
    views = TASKS[task].views
    alone, others = made(task, [5], epoch=2), made(task, [7, 5, 1], epoch=2)
    pictures = others["pixel_values"].unflatten(0, (views, 3))[:, 1]
    assert torch.equal(alone["pixel_values"], pictures)
    assert others["pixel_values"].shape == (views * 3, 3, IMAGE.size, IMAGE.size)
    assert others["labels"].shape[0] == 3
    assert torch.equal(alone["labels"][0], others["labels"][1])


@pytest.mark.parametrize("task", PRETEXTS)
def test_pictures_change_with_epoch_and_seed_and_not_from_one_evaluation_to_the_next(task):
    rows = list(range(12))
    first = made(task, rows)["pixel_values"]
    for other in ({"epoch": 1}, {"seed": 1}):
        assert not torch.equal(first, made(task, rows, **other)["pixel_values"])
    pretext, batch = pretext_of(task, VARIED, 3), images().__getitems__(rows)
    one, two = (pretext.inputs(batch, IMAGE) for _ in range(2))
    assert torch.equal(one["pixel_values"], two["pixel_values"])
    assert torch.equal(one["labels"], two["labels"])


def test_a_turned_image_is_the_image_turned_as_its_target_says():
    rows = list(range(24))
    found = made("rotation", rows, spec=STILL)
    upright = to_model_input(images().__getitems__(rows)["pixels"], IMAGE)
    assert set(found["labels"].tolist()) == {0, 1, 2, 3}
    for picture, turns, image in zip(found["pixel_values"], found["labels"], upright, strict=True):
        assert torch.equal(picture, torch.rot90(image, int(turns), (1, 2)))


@pytest.mark.parametrize("task", ["contrastive", "redundancy"])
def test_the_two_pictures_of_an_image_differ_and_its_target_is_its_place(task):
    found = made(task, [3, 4])
    one, two = found["pixel_values"].chunk(2)
    assert found["labels"].tolist() == [3, 4]
    assert not torch.equal(one, two)


def test_the_second_picture_of_a_frame_is_the_next_frame():
    stored = images()
    files = [f"film/{number:03d}.png" for number in range(len(stored))]
    frames = FrameSet(stored.pixels, stored.labels, stored.names, files)
    batch = frames.__getitems__([4, 23])
    found = pretext_of("slow", STILL, 0).inputs(batch, IMAGE)
    next_ones = to_model_input(stored.__getitems__([5, 22])["pixels"], IMAGE)
    assert torch.equal(found["pixel_values"][2:], next_ones)
    assert torch.equal(frames[4]["next"], frames[5]["pixels"])


def test_the_shift_that_is_asked_for_is_that_of_the_two_pictures():
    """A bright spot lies as far to the left in the second crop as that one lies to the right."""
    pixels = np.zeros((64, 100, 100, 3), np.uint8)
    pixels[:, 45:55, 45:55] = 255
    spots = ImageSet.from_arrays(pixels, np.zeros(64, int), ("a",))
    image = replace(IMAGE, size=70, crop_pct=0.7)
    found = pretext_of("motion", STILL, 0).inputs(spots.__getitems__(range(64)), image)
    light = found["pixel_values"].mean(1) - found["pixel_values"].amin()
    light = light / light.sum((1, 2), keepdim=True)
    at = torch.arange(70.0)
    places = torch.stack([(light.sum(1) * at).sum(1), (light.sum(2) * at).sum(1)], 1)
    one, two = places.chunk(2)
    steps = torch.stack([found["labels"] // SHIFTS, found["labels"] % SHIFTS], 1) - SHIFTS // 2
    assert torch.allclose(one - two, steps * STEP * 100.0, atol=0.1)
    assert len(set(found["labels"].tolist())) > 15
