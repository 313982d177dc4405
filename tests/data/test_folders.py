"""Folders: one listing, and splits are never taken for classes."""

import os
from pathlib import Path

import pytest

from hf_transfer.base.errors import DataError
from hf_transfer.data.folders import images_below, list_folder
from hf_transfer.data.sources import Scan, scan
from hf_transfer.recipe.specs import DataSpec


def made(root: Path, *folders: str, count: int = 4) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number}.jpg").write_bytes(b"x")
    return root


def found(root: Path) -> Scan:
    return scan(DataSpec(str(root)))


def refused(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        found(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("training_set test_set", "train validation test"),
        ("train_images test_images", "train validation test"),
        ("train validate", "train validation"),
        ("train holdout", "train validation test"),
        ("Training Valid Testing", "train validation test"),
        ("trainset valset", "train validation"),
    ],
)
def test_split_folders_by_any_usual_name_are_splits(tmp_path, names, splits):
    made(tmp_path, *(f"{name}/{label}" for name in names.split() for label in ("daisy", "rose")))
    scanned = found(tmp_path)
    assert scanned.labels == ("daisy", "rose")
    assert list(scanned.counts) == splits.split()
    assert sum(scanned.images.values()) == 8 * len(names.split())


def test_a_split_folder_that_repeats_itself_inside_is_one(tmp_path):
    made(tmp_path, "train/train/daisy", "train/train/rose", "test/test_set/daisy", "test/test/rose")
    assert found(tmp_path).labels == ("daisy", "rose")
    assert found(tmp_path).images["test"] == 8


def test_splits_inside_of_class_folders_are_splits(tmp_path):
    made(tmp_path, *(f"{label}/{s}" for label in ("daisy", "rose") for s in ("train", "val")))
    scanned = found(tmp_path)
    assert scanned.counts == {
        "train": {"daisy": 4, "rose": 4},
        "validation": {"daisy": 4, "rose": 4},
    }


def test_folders_that_are_neither_splits_nor_classes_are_refused_in_a_line(tmp_path):
    made(tmp_path / "sites", "north/daisy", "north/rose", "south/daisy", "south/rose")
    assert "north, south hold no images, but the same folders (daisy, rose)" in refused(
        tmp_path / "sites"
    )
    made(tmp_path / "extra", "train/daisy", "train/rose", "more/daisy", "more/rose")
    assert "more/ holds the same folders as train/" in refused(tmp_path / "extra")
    made(tmp_path / "twice", "train/daisy", "val/daisy", "valid/daisy", "train/rose")
    assert "val/, valid/ all look like the validation split" in refused(tmp_path / "twice")
    made(tmp_path / "bare", "train_images", "test_images")
    assert "which hold no folders" in refused(tmp_path / "bare")


def test_classes_may_hold_folders(tmp_path):
    made(tmp_path / "a", "daisy/images", "rose/images")
    assert found(tmp_path / "a").labels == ("daisy", "rose")
    made(tmp_path / "b", "daisy/p1", "daisy/p2", "rose/p3", "rose/p4")
    (tmp_path / "b" / "rose" / "1.jpg").write_bytes(b"x")
    assert found(tmp_path / "b").counts["train"] == {"daisy": 6, "rose": 7}


def test_unlabelled_images_beside_splits_are_listed_as_a_folder(tmp_path):
    made(tmp_path, "train/daisy", "train/rose", "test", "unlabelled")
    assert found(tmp_path).ignored == ("test/", "unlabelled/")


def test_what_desktops_and_people_leave_behind_is_no_image(tmp_path):
    made(tmp_path, "daisy", "rose")
    for name in (".DS_Store", "Thumbs.db", "Icon\r", "desktop.ini", "._1.jpg"):
        (tmp_path / "daisy" / name).write_bytes(b"x")
    for name in ("README", "LICENSE", "labels"):
        (tmp_path / "daisy" / name).write_text("some text")
    (tmp_path / "rose" / "photo").write_bytes(b"\xff\xd8\xff\xe0")
    scanned = found(tmp_path)
    assert sum(scanned.images.values()) == 9
    assert "rose/photo" in scanned.files
    assert scanned.ignored == ("daisy/LICENSE", "daisy/README", "daisy/labels")


def test_a_pipe_is_named_and_nothing_waits_for_it(tmp_path):
    made(tmp_path, "daisy", "rose")
    os.mkfifo(tmp_path / "daisy" / "pipe.jpg")
    os.mkfifo(tmp_path / "daisy" / "pipe")
    (tmp_path / "rose" / "endless.jpg").symlink_to("/dev/zero")
    odd = ("daisy/pipe", "daisy/pipe.jpg", "rose/endless.jpg")
    assert found(tmp_path).ignored == tuple(f"{name} (not a regular file)" for name in odd)


def test_prediction_lists_what_training_takes(tmp_path):
    made(tmp_path / "else", "more")
    made(tmp_path / "data", "daisy", "rose")
    (tmp_path / "data" / "tulip").symlink_to(tmp_path / "else" / "more")
    (tmp_path / "data" / "daisy" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "daisy" / "notes.txt").write_text("x")
    below = [str(path.relative_to(tmp_path / "data")) for path in images_below(tmp_path / "data")]
    assert tuple(below) == found(tmp_path / "data").files
    assert len(below) == 12


def test_a_folder_is_read_once(tmp_path, monkeypatch):
    made(tmp_path, "train/daisy", "train/rose", "test/daisy", "test/rose", "docs")
    read = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (read.append(str(path)), real(path))[1])
    found(tmp_path)
    assert len(read) == len(set(read)) == 8


def test_a_listing_is_sorted_whatever_the_names(tmp_path):
    for name in ("a/b.jpg", "a-b/c.jpg", "a.jpg", "a/b/c.jpg", "B.jpg", "ä.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name != "a/b/c.jpg":
            (tmp_path / name).write_bytes(b"x")
    files = list_folder(tmp_path).files
    assert list(files) == sorted(files)
    assert len(files) == 5


def test_split_words_with_numbers_and_others_are_no_classes(tmp_path):
    for number, names in enumerate(
        ("train test1", "train2017 val2017 test2017 unlabeled2017", "stage1_train stage1_test")
    ):
        assert "which hold no folders" in refused(made(tmp_path / f"{number}", *names.split()))
    assert "give the folders these names" in refused(
        made(tmp_path / "digits", "train_1/a", "train_1/b", "val_1/a", "val_1/b")
    )
    made(tmp_path / "classes", "train", "car", "bus", "test tube")
    assert found(tmp_path / "classes").labels == ("bus", "car", "test tube", "train")

    made(tmp_path / "inside", "train/train", "train/val")
    assert "expected one folder per class in train; found train, val" in refused(
        tmp_path / "inside"
    )


def test_a_folder_in_a_folder_in_a_folder_is_suggested(tmp_path):
    made(tmp_path, "archive/flowers/flowers/daisy", "archive/flowers/flowers/rose")
    assert f"did you mean {tmp_path}/archive/flowers/flowers?" in refused(tmp_path)


def test_an_archive_among_no_images_is_named(tmp_path):
    (tmp_path / "train.zip").write_bytes(b"x")
    assert refused(tmp_path) == f"{tmp_path}: no images; unpack train.zip first"
