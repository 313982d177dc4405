"""Whatever data sets stand beside each other, a batch of them is one that a step takes."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from small import HEAD, Pixels, changed, images, network, state, trained
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from hf_transfer.base.errors import UserError
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.inputs.augmentation import augment
from hf_transfer.inputs.batches import check_first_item, evaluation_inputs, training_inputs
from hf_transfer.inputs.model_input import collate
from hf_transfer.recipe.specs import Augment, PhaseSpec

IMAGE = ImageSettings(32)


def batches(dataset, size=4):
    return list(DataLoader(dataset, batch_size=size, collate_fn=collate))


@pytest.mark.parametrize(
    "make",
    [
        lambda stored: stored,
        lambda stored: Subset(stored, range(len(stored))),
        lambda stored: ConcatDataset([stored.subset(range(7)), stored.subset(range(7, 12))]),
        lambda stored: ConcatDataset([Subset(stored, range(7)), Subset(stored, range(7, 12))]),
        lambda stored: [stored[index] for index in range(len(stored))],
    ],
)
def test_parts_and_unions_of_an_image_set_give_its_batches(make):
    stored = images(12)
    for found, expected in zip(batches(make(stored)), batches(stored), strict=True):
        for key in ("pixels", "labels"):
            assert torch.equal(found[key], expected[key])
            assert found[key].dtype == expected[key].dtype


def test_all_other_items_are_collated_as_transformers_does():
    pixel_values = np.zeros((3, 32, 32), np.float32)
    rows = [{"pixel_values": pixel_values, "label": 1}, {"pixel_values": pixel_values, "label": 0}]
    batch = collate(rows)
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["labels"].tolist() == [1, 0]


def test_images_of_two_sizes_in_a_batch_are_told_of():
    both = ConcatDataset([images(2, size=40), images(2, size=48)])
    with pytest.raises(UserError, match=r"images of \(40, 40, 3\) and \(48, 48, 3\); make all"):
        batches(both)


def test_without_variation_training_sees_what_evaluation_sees_and_needs_no_index():
    batch = collate([images(4)[index] for index in range(4)])
    stored = images(4)
    del batch["index"]
    spec = PhaseSpec(train="head", epochs=1)
    found = training_inputs(batch, spec, IMAGE, stored, 0, 0)
    expected = evaluation_inputs(batch, IMAGE)
    plain = augment(batch["pixels"], torch.arange(4), 0, 0, Augment(), IMAGE)
    for same in (expected["pixel_values"], plain):
        assert torch.equal(found["pixel_values"], same)


class Stream(IterableDataset):
    def __iter__(self):
        raise AssertionError("its items may come once only")


def test_a_set_that_can_only_be_gone_through_is_not_looked_at():
    assert check_first_item(Stream(), "the training set", IMAGE) is None


@pytest.mark.parametrize(
    "dataset",
    [
        images(2),
        Subset(images(2), [1]),
        [{"pixel_values": torch.zeros(3, 64, 48), "labels": 1}],
        [{"pixel_values": np.zeros((3, 32, 32)), "label": 1, "name": "a"}],
        datasets.Dataset.from_dict(
            {"pixel_values": np.zeros((2, 3, 4, 4)), "labels": [0, 1]}
        ).with_format("torch"),
    ],
)
def test_items_that_a_step_takes_pass(dataset):
    label, shape = check_first_item(dataset, "the training set", IMAGE)
    assert int(label) in (0, 1)
    assert shape == tuple(np.shape(dataset[0].get("pixel_values", 0)))


PHOTO = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        ([], "cannot read the first item of the training set: list index out of range; each item"),
        ([(torch.zeros(3, 4, 4), 1)], "the training set gives a tuple for each image; each item"),
        ([{"image": PHOTO, "label": 1}], "the training set gives 'image', 'label'; each item is"),
        ([{"pixel_values": PHOTO, "label": 1}], "gives an Image as pixel_values; each item is"),
        ([{"pixel_values": torch.zeros(3, 4, 4)}], "gives no labels, but 'pixel_values'; each"),
        (
            [{"pixel_values": torch.zeros(4, 4, 3), "labels": 1}],
            r"pixel_values of shape \(4, 4, 3\), and the model takes 3 channels; each item is",
        ),
        (
            [{"pixels": torch.zeros(4, 4, 3, dtype=torch.uint8), "labels": 1}],
            r"the first item of the training set: pixels are torch.uint8 \(1, 4, 4, 3\); the model",
        ),
        ([{}], "the training set gives nothing; each item is"),
    ],
)
def test_any_other_first_item_is_one_line_with_what_to_do(dataset, line):
    with pytest.raises(UserError, match=line) as error:
        check_first_item(dataset, "the training set", IMAGE)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("or use load_data")


def test_own_sets_and_parts_of_image_sets_train_and_judge_side_by_side(tmp_path):
    """As the same images in one ImageSet do."""
    model, stored = network(), images(12)
    ends = []
    phase = {**HEAD, "features": "live"}
    for train, evaluation in (
        (stored, images(6, seed=1)),
        (Subset(stored, range(12)), Pixels(images(6, seed=1), model)),
        (ConcatDataset([stored.subset(range(5)), stored.subset(range(5, 12))]), stored),
        (Pixels(stored, model), Subset(images(6, seed=1), range(6))),
    ):
        own = {"train_dataset": train, "eval_dataset": evaluation}
        ends.append(state(trained(tmp_path, [phase], network(), **own).model))
    for end in ends[1:]:
        for name, value in end.items():
            assert torch.allclose(value, ends[0][name], atol=1e-6), name


def test_a_set_that_no_step_can_take_is_refused_before_anything_trains(tmp_path):
    model = network()
    before = state(model)
    pairs = [(torch.zeros(3, 32, 32), 0)]
    for sets, what in (({"train_dataset": pairs}, "training"), ({"eval_dataset": pairs}, "valid")):
        with pytest.raises(UserError, match=f"^the {what}.* set gives a tuple for each image"):
            trained(tmp_path, [HEAD], model, **sets)
    assert not changed(before, state(model))
