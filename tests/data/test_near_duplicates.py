"""Pictures that are nearly the same are found however they were saved, listed, and kept."""

import io

import numpy as np
import pytest
from drawn import picture
from PIL import Image, ImageEnhance, ImageFilter

from hf_transfer.data import near_duplicates as module
from hf_transfer.data.image_set import load_data
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.near_duplicates import HASH_BYTES, near_pairs, picture_hashes
from hf_transfer.recipe.specs import DataSpec


def photo(seed: int, side: int = 128) -> Image.Image:
    """Return a picture with coarse and fine parts, a function of the seed."""
    rng = np.random.default_rng(seed)
    whole = np.zeros((side, side, 3))
    for cells in (3, 8, 20):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        whole += np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) / 3
    return Image.fromarray(whole.astype(np.uint8))


def hashed(image: Image.Image) -> np.ndarray:
    return picture_hashes(np.asarray(image.convert("RGB"))[None])[0]


def as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    return Image.open(file)


CHANGES = {
    "saved as JPEG": as_jpeg,
    "halved": lambda image: image.resize((64, 64), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "gray": lambda image: image.convert("L"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_picture_is_found_when_it_was(change):
    rows = np.stack([hashed(photo(1)), hashed(photo(2)), hashed(CHANGES[change](photo(1)))])
    assert list(near_pairs(rows)) == [(0, 2)]


def test_different_pictures_are_not_taken_as_near():
    rows = np.stack([hashed(photo(seed)) for seed in range(200)])
    assert list(near_pairs(rows)) == []


def test_flat_pictures_have_no_hash():
    rows = np.stack([hashed(Image.new("RGB", (40, 40), colour)) for colour in ("red", "navy")])
    assert not rows.any()
    assert list(near_pairs(rows)) == []


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_any_number_of_channels_have_a_hash(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 30, channels), dtype=np.uint8)
    (found,) = picture_hashes(pixels[None])
    assert len(found) == HASH_BYTES
    assert any(found)


def test_many_pictures_are_compared_where_a_part_of_the_hash_agrees(monkeypatch):
    monkeypatch.setattr(module, "MOST_COMPARED", 10)
    rows = [hashed(photo(seed)) for seed in range(20)]
    rows += [hashed(CHANGES["halved"](photo(3))), hashed(CHANGES["blurred"](photo(3)))]
    assert set(near_pairs(np.stack(rows))) == {(3, 20), (3, 21), (20, 21)}


def test_the_audit_lists_them_by_split_and_label_and_keeps_them(tmp_path):
    for split, label, name, image in (
        ("train", "a", "1.png", photo(1)),
        ("train", "a", "2.png", photo(2)),
        ("train", "a", "again.png", CHANGES["brighter"](photo(2))),
        ("train", "b", "3.png", photo(3)),
        ("train", "b", "4.png", photo(4)),
        ("train", "b", "one.png", CHANGES["halved"](photo(1))),
        ("val", "a", "5.png", photo(5)),
        ("val", "b", "three.png", as_jpeg(photo(3))),
    ):
        place = tmp_path / "data" / split / label
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / name)
    data = load_data(DataSpec(str(tmp_path / "data"), min_per_class=1), ImageSettings(48))
    found = {one.kind: one for one in data.audit.findings}
    across = found["near-duplicates-across-splits"]
    assert {"train/b/3.png", "val/b/three.png"} == set(across.files)
    assert set(found["near-duplicates-two-labels"].files) == {"train/a/1.png", "train/b/one.png"}
    assert set(found["near-duplicates"].files) == {"train/a/2.png", "train/a/again.png"}
    assert all(one.done.startswith("kept") for one in found.values())
    assert len(data.train) == 6


def test_copies_with_the_same_pixels_are_told_once(tmp_path):
    for label, seeds in (("a", (1, 2, 3)), ("b", (4, 5, 6))):
        (tmp_path / label).mkdir()
        for seed in seeds:
            picture(seed).save(tmp_path / label / f"{seed}.png")
    picture(1).save(tmp_path / "a" / "copy.png")
    data = load_data(DataSpec(str(tmp_path), validation=0.3, min_per_class=1), ImageSettings(32))
    kinds = [one.kind for one in data.audit.findings]
    assert not [kind for kind in kinds if kind.startswith("near-duplicates")]
