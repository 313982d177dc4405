"""Labels are matched by name between the model and every set of images, before anything runs."""

import datasets
import numpy as np
import pytest
import torch
from small import COLD, HEAD, NAMES, Pixels, arguments, images, network, trainer
from torch.utils.data import ConcatDataset, Subset
from transformers import default_data_collator

from hf_transfer.base.errors import UserError
from hf_transfer.data.image_set import ImageSet
from hf_transfer.training.trainer import TransferTrainer

TURNED = tuple(reversed(NAMES))


def named(names, count=12):
    stored = images(count)
    return ImageSet.from_arrays(stored.pixels, stored.labels, names)


class Folder(torch.utils.data.Dataset):
    """A user's own data set with the names of its classes, as torchvision's ImageFolder has."""

    def __init__(self, names):
        self.classes, self.items = list(names), Pixels(images(12), network())

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def rows(names):
    items = Pixels(images(6), network())
    features = datasets.Features(
        {
            "pixel_values": datasets.Array3D((3, 32, 32), "float32"),
            "labels": datasets.ClassLabel(names=list(names)),
        }
    )
    values = {"pixel_values": items.pixels.numpy(), "labels": items.labels.tolist()}
    return datasets.Dataset.from_dict(values, features=features).with_format("torch")


KINDS = {
    "image set": named,
    "subset": lambda names: Subset(named(names), range(6)),
    "several": lambda names: ConcatDataset([named(NAMES), named(names)]),
    "own": Folder,
    "rows": rows,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["train_dataset", "eval_dataset"])
def test_labels_in_another_order_are_refused_before_training(tmp_path, kind, place):
    made = trainer(tmp_path / "out", [COLD], **{place: KINDS[kind](TURNED)})
    what = "training set" if place == "train_dataset" else "validation set"
    with pytest.raises(UserError, match=f"label 0 of the {what}.* is '{TURNED[0]}'.*'{NAMES[0]}'"):
        made.train()
    assert not list((tmp_path / "out").glob("phase*"))


@pytest.mark.parametrize("kind", KINDS)
def test_labels_in_the_same_order_train(tmp_path, kind):
    own = {"train_dataset": KINDS[kind](NAMES), "eval_dataset": KINDS[kind](NAMES)}
    done = trainer(tmp_path, [{**COLD, "steps": 1, "epochs": None}], **own)
    done.train()
    assert done.reports[0].steps == 1


def test_other_labels_are_refused_where_one_evaluates_or_predicts_too(tmp_path):
    made = trainer(tmp_path, [HEAD])
    for call in (made.evaluate, made.predict):
        with pytest.raises(UserError, match="label 0 of the .* is"):
            call(named(TURNED))


def test_a_set_that_lacks_the_last_classes_fits_and_one_that_lacks_the_first_does_not(tmp_path):
    pixels, labels = images(6).pixels, np.array([0, 1] * 3)
    made = trainer(tmp_path, [HEAD])
    made.evaluate(ImageSet.from_arrays(pixels, labels, NAMES[:2]))
    with pytest.raises(UserError, match="label 0 of the"):
        made.evaluate(ImageSet.from_arrays(pixels, labels, NAMES[1:]))


def test_more_classes_than_the_model_has_are_refused(tmp_path):
    stored = images(8)
    more = ImageSet.from_arrays(stored.pixels, np.arange(8) % 4)
    made = trainer(tmp_path, [HEAD], train_dataset=more)
    with pytest.raises(UserError, match="the training set has 4 labels and the model 3"):
        made.train()


def test_labels_without_names_of_their_own_fit_any_model(tmp_path):
    stored = images(12)
    plain = ImageSet.from_arrays(stored.pixels, stored.labels)
    made = trainer(tmp_path, [HEAD], train_dataset=plain)
    made.train()
    assert made.backbone.labels == NAMES
    assert made.reports[0].steps > 0


def test_one_of_several_validation_sets_is_named(tmp_path):
    sets = {"a": named(NAMES), "b": named(TURNED)}
    made = trainer(tmp_path, [{**HEAD, "best": "a_loss"}], eval_dataset=sets)
    with pytest.raises(UserError, match="label 0 of the validation set b is"):
        made.train()


def test_a_models_default_names_are_no_names(tmp_path):
    model = network()
    model.config.id2label = {i: f"LABEL_{i}" for i in range(3)}
    model.backbone = None
    made = TransferTrainer(
        model, arguments(tmp_path), [COLD], head=["timm_model.fc.*"],
        train_dataset=Folder(NAMES), data_collator=default_data_collator,
    )  # fmt: skip
    made.train()
    assert made.reports[0].checks["unmoved"] == []
