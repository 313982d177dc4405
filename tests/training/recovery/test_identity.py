"""A run that is resumed from Python is made of the same as it was, or is refused in a line."""

import numpy as np
import pytest
import torch
from PIL import Image
from small import HEAD, NAMES, RESNET, Pixels, arguments, images, network, trainer
from torch.utils.data import ConcatDataset, Subset

from hf_transfer.backbones.load import load_backbone
from hf_transfer.base.errors import UserError
from hf_transfer.base.locks import only_writer
from hf_transfer.data.image_set import ImageSet, load_data
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.scan import Scan
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.training.recovery.checkpoints import CheckpointError
from hf_transfer.training.recovery.identity import content
from hf_transfer.training.trainer import TransferTrainer

IMAGE = ImageSettings(size=32)


def turned(stored):
    """The same images with the labels of two classes exchanged."""
    swap = np.array([1, 0, 2])
    return ImageSet.from_arrays(stored.pixels, swap[stored.labels], NAMES)


def other_weights():
    model = network()
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    return model


CHANGES = {
    "seed": {"seed": 8},
    "training images": {"train_dataset": images(seed=5)},
    "training images, their labels": {"train_dataset": turned(images())},
    "validation images": {"eval_dataset": images(12, seed=3)},
    "precision": {"bf16": True},
    "class_weights": {"class_weights": torch.tensor([1.0, 2.0, 1.0])},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder, [HEAD], checkpoint_seconds=1000).train()
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_of_something_else_is_refused_by_its_name(finished, change):
    again = trainer(finished, [HEAD], checkpoint_seconds=1000, **CHANGES[change])
    what = change.partition(",")[0]
    with pytest.raises(CheckpointError, match=rf"is of another run \(.*{what}.*\)"):
        again.train(resume_from_checkpoint=True)


def test_other_weights_are_refused(finished):
    again = trainer(finished, [HEAD], other_weights(), checkpoint_seconds=1000)
    with pytest.raises(CheckpointError, match=r"is of another run \(other weights of the"):
        again.train(resume_from_checkpoint=True)


def test_the_same_run_is_read_back(finished):
    again = trainer(finished, [HEAD], checkpoint_seconds=1000)
    again.train(resume_from_checkpoint=True)
    assert again.reports[0].name == "head"


def test_a_new_head_may_have_other_values(finished):
    model = network()
    with torch.no_grad():
        model.timm_model.fc.weight.add_(0.1)
    own = {"train_dataset": images(), "eval_dataset": images(12, seed=1), "ends_with": "last"}
    args = arguments(finished)
    again = TransferTrainer(model, args, [HEAD], checkpoint_seconds=1000, **own)
    again.train(resume_from_checkpoint=True)
    first = trainer(finished, [HEAD], checkpoint_seconds=1000)
    first.train(resume_from_checkpoint=True)
    assert again.reports == first.reports  # read back, and not trained again
    assert torch.equal(model.timm_model.fc.weight, first.model.timm_model.fc.weight)


def test_names_of_labels_are_a_part_of_what_a_set_is():
    stored = images(6)
    other = ImageSet.from_arrays(stored.pixels, stored.labels, ("x", "y", "z"))
    assert content(stored) == content(images(6))
    assert content(stored) != content(other)
    assert content({"a": stored}) == {"a": content(stored)}
    assert content(None) is None


def test_a_folder_that_another_run_writes_to_is_left_to_it(tmp_path):
    folder = tmp_path / "phase-1-head"
    folder.mkdir()
    made = trainer(tmp_path, [HEAD], checkpoint_seconds=1000)
    with only_writer(folder), pytest.raises(UserError, match=r"in use by another run \(process"):
        made.train()
    made.train(resume_from_checkpoint=True)
    assert [path.name for path in folder.iterdir()] == ["checkpoint-end"]


@pytest.fixture
def photos(tmp_path):
    """Six photos of two classes, on disk."""
    for i in range(6):
        place = tmp_path / "photos" / ("red" if i % 2 else "blue") / f"{i}.bmp"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (40 * i, 9, 200)).save(place)
    return tmp_path / "photos"


def photo_trainer(folder, photos):
    """A Trainer on photos whose files are not read again while their size and times stay."""
    data = load_data(DataSpec(str(photos), validation=0.3, min_per_class=1), IMAGE)
    model = load_backbone(RESNET, data.labels, pretrained=False, image_size=32)
    own = {"train_dataset": data.train, "eval_dataset": data.validation}
    return trainer(folder, [HEAD], model, checkpoint_seconds=1000, **own)


def test_images_replaced_at_equal_size_and_times_are_found_at_a_resume(
    tmp_path, photos, monkeypatch
):
    """What a file system says of a file is made to stay, as in an image of a container."""
    monkeypatch.setattr(Scan, "identity", lambda self, row: self.files[row])
    photo_trainer(tmp_path / "run", photos).train()
    photo_trainer(tmp_path / "run", photos).train(resume_from_checkpoint=True)
    for i, path in enumerate(photos.rglob("*.bmp")):
        Image.new("RGB", (32, 32), (40 * i, 99, 0)).save(path)
    again = photo_trainer(tmp_path / "run", photos)
    with pytest.raises(CheckpointError, match="other training images or labels"):
        again.train(resume_from_checkpoint=True)


class Varied(Pixels):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "pixel_values": torch.rand(3, 32, 32)}


def test_a_set_of_the_users_is_known_by_items_that_do_not_vary():
    model = network()
    assert content(Pixels(images(), model)) == content(Pixels(images(), model))
    assert content(Pixels(images(), model)) != content(Pixels(images(seed=5), model))
    assert content(Pixels(images(), model)) != content(Pixels(turned(images()), model))
    assert content(Varied(images(), model)) == content(Varied(images(seed=5), model))
    assert content(Varied(images(), model)) != content(Varied(turned(images()), model))


def test_parts_of_sets_are_known_by_the_images_in_them():
    first, other = images(12), images(12, seed=5)
    assert content(Subset(first, [0, 1])) == content(Subset(images(12), [0, 1]))
    assert content(Subset(first, [0, 1])) != content(Subset(first, [0, 2]))
    assert content(Subset(first, [0, 1])) != content(Subset(other, [0, 1]))
    assert content(ConcatDataset([first, other])) != content(ConcatDataset([first, first]))
