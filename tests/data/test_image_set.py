"""Data: the same images with the same labels in every order, process and place."""

import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_transfer.base.errors import UserError
from hf_transfer.data.decoding import decode
from hf_transfer.data.image_set import ImageSet, load_data
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.sources import list_source
from hf_transfer.inputs.augmentation import augment
from hf_transfer.inputs.model_input import collate
from hf_transfer.recipe.specs import Augment, DataSpec

SETTINGS = ImageSettings(16, crop_pct=0.8, interpolation="bilinear")


@pytest.fixture
def photos(tmp_path) -> Path:
    """2 x 20 pictures, all different."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number:02d}.png")
    return tmp_path / "data"


@pytest.fixture
def loaded(photos, tmp_path):
    return load_data(DataSpec(str(photos), test=0.1), SETTINGS, 0, tmp_path / "cache")


def arrays(count: int = 10) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return ImageSet.from_arrays(pixels, np.arange(count) % 3)


def test_every_image_has_its_own_pixels_and_label(photos, loaded):
    assert loaded.labels == ("cat", "dog")
    assert [len(images) for images in (loaded.train, loaded.validation, loaded.test)] == [28, 8, 4]
    for images in (loaded.train, loaded.validation, loaded.test):
        batch = images.__getitems__(range(len(images)))
        for row, name in enumerate(images.files):
            assert np.array_equal(batch["pixels"][row], decode(photos / name, SETTINGS))
            assert loaded.labels[batch["labels"][row]] == name.split("/")[0]
        assert images.pixels.shape == (len(images), 20, 20, 3)
        assert images.class_counts == (len(images) // 2,) * 2
    files = {*loaded.train.files, *loaded.validation.files, *loaded.test.files}
    assert len(files) == 40
    assert loaded.counts["test"] == {"cat": 2, "dog": 2}


def test_a_batch_and_its_items_agree(loaded):
    batch = loaded.train.__getitems__([5, 0, 27])
    assert batch["pixels"].shape == (3, 20, 20, 3)
    assert batch["pixels"].dtype == torch.uint8
    assert batch["labels"].dtype == batch["index"].dtype == torch.int64
    assert batch["index"].tolist() == [5, 0, 27]
    items = collate([loaded.train[index] for index in (5, 0, 27)])
    assert {key: value.tolist() for key, value in items.items()} == {
        key: value.tolist() for key, value in batch.items()
    }
    assert collate(batch) is batch
    assert loaded.train[-1]["index"] == 27
    with pytest.raises(IndexError, match="28 of 28 images"):
        loaded.train[28]


@pytest.mark.parametrize("live", [False, True])
def test_workers_give_what_one_process_gives(photos, tmp_path, live):
    limit = 100 if live else None
    data = load_data(DataSpec(str(photos)), SETTINGS, 0, tmp_path / "cache", limit)
    batches = [
        list(DataLoader(data.train, 5, num_workers=workers, collate_fn=collate))
        for workers in (0, 2)
    ]
    assert len(batches[0]) == 7
    for one, two in zip(*batches, strict=True):
        for key in ("pixels", "labels", "index"):
            assert torch.equal(one[key], two[key])


def test_variation_of_an_image_survives_workers_and_shuffling(loaded):
    how = Augment(crop=(0.4, 1.0), flip=True, color=0.3, erase=0.3)

    def seen(**options) -> dict[int, bytes]:
        torch.manual_seed(options.pop("shuffle"))
        loader = DataLoader(loaded.train, shuffle=True, collate_fn=collate, **options)
        return {
            int(index): x.numpy().tobytes()
            for batch in loader
            for index, x in zip(
                batch["index"],
                augment(batch["pixels"], batch["index"], 1, 2, how, SETTINGS),
                strict=True,
            )
        }

    one = seen(batch_size=4, shuffle=0)
    assert len(one) == 28
    assert seen(batch_size=9, shuffle=1, num_workers=2) == one


def test_two_loads_are_equal_and_the_second_comes_from_the_store(photos, tmp_path, caplog):
    caplog.set_level(logging.INFO, "hf_transfer")
    first, second = (
        load_data(DataSpec(str(photos)), SETTINGS, 3, tmp_path / "cache") for _ in range(2)
    )
    assert sum("decoded 40 images" in message for message in caplog.messages) == 1
    assert first.fingerprint == second.fingerprint
    assert first.train.files == second.train.files
    rows = np.arange(len(first.train))
    assert np.array_equal(first.train.pixels[rows], second.train.pixels[rows])
    assert pickle.loads(pickle.dumps(second)).train[3]["pixels"].equal(first.train[3]["pixels"])


def test_the_fingerprint_follows_names_labels_and_content_alone(photos, tmp_path):
    def fingerprint(path=photos, settings=SETTINGS, seed=0, **options) -> str:
        spec = DataSpec(str(path), **options)
        return load_data(spec, settings, seed, tmp_path / "cache").fingerprint

    before = fingerprint()
    assert len(before) == 64
    assert fingerprint(seed=1) == before
    assert fingerprint(settings=ImageSettings(8)) == before
    assert fingerprint(validation=0.5) == before
    shutil.copytree(photos, tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == before
    assert fingerprint(train_per_class=4) != before
    image = tmp_path / "moved" / "cat" / "00.png"
    Image.new("RGB", (30, 30), "red").save(image)
    assert fingerprint(tmp_path / "moved") != before
    shutil.copy(photos / "cat" / "00.png", image)
    assert fingerprint(tmp_path / "moved") == before
    image.rename(image.with_name("renamed.png"))
    assert fingerprint(tmp_path / "moved") != before


@pytest.mark.parametrize("limit", [None, 9])
def test_data_are_the_same_decoded_and_read_back(photos, tmp_path, limit):
    shutil.copy(photos / "cat" / "00.png", photos / "cat" / "copy.png")
    spec = DataSpec(str(photos), test=0.1, train_per_class=limit)
    first, data = (load_data(spec, SETTINGS, 0, tmp_path / "cache") for _ in range(2))
    assert data.fingerprint == first.fingerprint
    assert data.audit == first.audit
    for split, images in data.splits.items():
        same = first.splits[split]
        assert images.files == same.files
        assert np.array_equal(images.labels, same.labels)
        assert np.array_equal(images.pixels[:], same.pixels[:])
        again = pickle.loads(pickle.dumps(images)).__getitems__([3, 0])
        assert torch.equal(again["pixels"], same.__getitems__([3, 0])["pixels"])


def test_what_is_listed_once_is_not_listed_again(photos, tmp_path, monkeypatch):
    spec = DataSpec(str(photos), train_per_class=5)
    listed = list_source(spec)
    whole = load_data(spec, SETTINGS, 3, tmp_path / "cache")
    monkeypatch.setattr("hf_transfer.data.sources.list_folder", None)
    again = load_data(spec, SETTINGS, 3, tmp_path / "cache", listed=listed)
    assert again.fingerprint == whole.fingerprint
    assert again.train.files == whole.train.files


def test_findings_are_logged(photos, tmp_path, caplog):
    caplog.set_level(logging.INFO, "hf_transfer")
    (photos / "cat" / "03.png").write_bytes(b"")
    load_data(DataSpec(str(photos)), SETTINGS, 0, tmp_path / "cache")
    assert "zero-byte: 1 (cat/03.png): left out: the file is empty" in caplog.messages


def test_a_subset_counts_from_zero_again(loaded):
    some = loaded.train.subset([7, 3])
    assert some.files == (loaded.train.files[7], loaded.train.files[3])
    assert some[1]["index"] == 1
    assert torch.equal(some[1]["pixels"], loaded.train[3]["pixels"])
    assert some.labels.tolist() == loaded.train.labels[[7, 3]].tolist()
    memory = arrays().subset(np.array([4, 4, 1]))
    assert memory.labels.tolist() == [1, 1, 1]
    assert memory.class_counts == (0, 3, 0)


def test_images_from_memory_are_a_set_like_any_other():
    images = arrays()
    assert len(images) == 10
    assert images.names == ("0", "1", "2")
    assert images.class_counts == (4, 3, 3)
    assert images.files == ()
    assert images.__getitems__([2, 9])["labels"].tolist() == [2, 0]
    gray = ImageSet.from_arrays(np.zeros((4, 8, 8), np.uint8), [0, 1, 1, 0], ("no", "yes"))
    assert gray[1]["pixels"].shape == (8, 8, 1)
    assert gray.names == ("no", "yes")


def test_images_from_memory_that_do_not_fit_are_refused():
    good = np.zeros((4, 8, 8, 3), np.uint8)
    for pixels, labels, names, message in (
        (good.astype(np.float32), [0] * 4, (), "float32"),
        (good[:, :7], [0] * 4, (), r"give uint8 \(N, S, S, C\): squares, channels last"),
        (good, [0] * 3, (), "give 4 whole numbers, one for each"),
        (good, [0.5] * 4, (), "give 4 whole numbers"),
        (good, [0, 1, 2, 3], ("a", "b"), "labels run from 0 to 3, and there are 2 names"),
        (good, [0, 1, -1, 0], (), "labels run from -1"),
    ):
        with pytest.raises(UserError, match=message):
            ImageSet.from_arrays(pixels, labels, names)
    with pytest.raises(UserError, match="one image at a time"):
        ImageSet.from_arrays(good, [0] * 4)[:2]


def test_datasets_and_folders_give_the_same_images(photos, tmp_path):
    import datasets

    files = sorted(photos.rglob("*.png"))
    columns = {
        "image": [Image.open(file) for file in files],
        "label": [file.parent.name for file in files],
    }
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table.class_encode_column("label").save_to_disk(str(tmp_path / "saved"))
    for image in columns["image"]:
        image.close()
    data = load_data(DataSpec(str(tmp_path / "saved")), SETTINGS, 0, tmp_path / "cache")
    assert data.labels == ("cat", "dog")
    for images in (data.train, data.validation):
        for row, name in enumerate(images.files):
            file = files[int(name.split("/")[1])]
            assert np.array_equal(images.pixels[row], decode(file, SETTINGS))
            assert data.labels[images.labels[row]] == file.parent.name


def test_the_flowers_load_as_the_readme_says(flowers, tmp_path):
    spec = DataSpec(str(flowers), train_per_class=200, validation_per_class=100)
    data = load_data(spec, ImageSettings(96, interpolation="bilinear"), 0, tmp_path)
    assert data.train.class_counts == (200,) * 5
    assert data.validation.class_counts == (100,) * 5
    assert data.labels == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert data.test is None
