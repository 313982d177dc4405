"""Audit: what is wrong with the files is handled, refused or named; always the right one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_transfer.base.errors import DataError
from hf_transfer.data.findings import NAMED
from hf_transfer.data.image_set import ImageData, load_data
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.recipe.specs import DataSpec

SETTINGS = ImageSettings(32, interpolation="bilinear")


def picture(seed: int, width: int = 40, height: int = 36) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def folders(root: Path, first: int = 0, **counts: int) -> Path:
    """Class folders of pictures that are all different."""
    for label, count in counts.items():
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(first).save(root / label / f"{number:03d}.png")
            first += 1
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    """Split folders of pictures that are all different: 2 x 20, 2 x 5 and 2 x 5."""
    for place, (split, count) in enumerate((("train", 20), ("validation", 5), ("test", 5))):
        folders(tmp_path / "data" / split, 1000 * place, cat=count, dog=count)
    return tmp_path / "data"


def load(path: Path, **options) -> ImageData:
    return load_data(DataSpec(str(path), **options), SETTINGS, 0, path.parent / "cache")


def refused(path: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def found(data: ImageData) -> dict[str, tuple[str, ...]]:
    return {finding.kind: finding.files for finding in data.audit.findings}


def done(data: ImageData, kind: str) -> str:
    return next(finding.done for finding in data.audit.findings if finding.kind == kind)


def test_clean_data_have_no_findings(root):
    data = load(root)
    assert data.audit.findings == ()
    assert (data.audit.images, data.audit.bad, data.audit.imbalance) == (60, 0, 1.0)
    assert data.audit.to_dict() == {"findings": []}


def test_every_bad_file_is_left_out_and_named_by_its_kind(root):
    cat = root / "train" / "cat"
    picture(91).save(cat / "000.jpg")
    jpeg = (cat / "000.jpg").read_bytes()
    (cat / "empty.jpg").write_bytes(b"")
    (cat / "page.jpg").write_bytes(b"<html>not found</html>" * 9)
    (cat / "half.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (cat / "gone.jpg").symlink_to(root / "nowhere.jpg")
    Image.fromarray(np.full((40, 40), 300, np.float32)).save(cat / "real.tif")
    data = load(root, max_bad=0.2)
    assert found(data) == {
        "missing": ("train/cat/gone.jpg",),
        "zero-byte": ("train/cat/empty.jpg",),
        "not-an-image": ("train/cat/page.jpg",),
        "truncated": ("train/cat/half.jpg",),
        "unreadable": ("train/cat/real.tif",),
    }
    assert data.audit.bad == 5
    assert all(finding.done.startswith("left out") for finding in data.audit.findings)
    assert done(data, "unreadable").endswith("save it as 8 or 16 bits)")
    assert data.counts["train"] == {"cat": 21, "dog": 20}
    assert not {"train/cat/half.jpg", "train/cat/empty.jpg"} & set(data.train.files)


def test_one_bad_file_stops_nothing_and_too_many_stop_the_run(root):
    for number in (3, 4):
        (root / "train" / "cat" / f"{number:03d}.png").write_bytes(b"")
        if number == 3:
            assert found(load(root)) == {"zero-byte": ("train/cat/003.png",)}
            assert "max_bad allows 0: train/cat/003.png" in refused(root, max_bad=0.0)
    message = refused(root)
    assert "2 of 60 images are unusable, and data.max_bad allows 1" in message
    assert "train/cat/003.png: the file is empty; train/cat/004.png" in message
    assert load(root, max_bad=0.05).audit.bad == 2
    for number in range(5, 9):
        (root / "train" / "cat" / f"{number:03d}.png").write_bytes(b"")
    assert refused(root).endswith("; ...")


def test_every_unusual_file_is_used_and_says_how(root):
    cat = root / "train" / "cat"
    gray = np.random.default_rng(5).integers(0, 65536, (40, 40)).astype(np.uint16)
    frames = [picture(seed) for seed in (5001, 5002)]
    exif = Image.Exif()
    exif[0x0112] = 6
    frames[0].save(cat / "animated.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(gray).save(cat / "deep.png")
    Image.fromarray(gray // 40).save(cat / "dark.png")
    picture(5003).convert("L").save(cat / "gray.png")
    picture(5004).convert("RGBA").save(cat / "alpha.png")
    picture(5005).convert("CMYK").save(cat / "cmyk.jpg")
    picture(5006).save(cat / "turned.jpg", exif=exif)
    picture(5007, 12, 30).save(cat / "small.png")
    Image.new("1", (7200, 7200)).save(cat / "large.png")
    data = load(root)
    names = {kind: {Path(name).name for name in files} for kind, files in found(data).items()}
    assert names == {
        "animated": {"animated.gif"},
        "16-bit": {"deep.png", "dark.png"},
        "dark-16-bit": {"dark.png"},
        "grayscale": {"deep.png", "dark.png", "gray.png", "large.png"},
        "palette": {"animated.gif"},
        "alpha": {"alpha.png"},
        "cmyk": {"cmyk.jpg"},
        "rotated": {"turned.jpg"},
        "tiny": {"small.png"},
        "enormous": {"large.png"},
    }
    assert data.counts["train"]["cat"] == 29
    assert json.loads(json.dumps(data.audit.to_dict())) == data.audit.to_dict()


def test_a_leak_is_taken_out_of_training_and_kept_in_evaluation(root):
    shutil.copy(root / "validation" / "cat" / "000.png", root / "train" / "cat" / "leak.png")
    picture(2000).save(root / "train" / "cat" / "other_format.bmp")  # test/cat/000, re-encoded
    shutil.copy(root / "test" / "dog" / "001.png", root / "validation" / "dog" / "same.png")
    data = load(root)
    assert found(data) == {
        "leak": ("train/cat/leak.png", "train/cat/other_format.bmp"),
        "leak-test": ("validation/dog/same.png",),
    }
    assert data.counts == {
        "train": {"cat": 20, "dog": 20},
        "validation": {"cat": 5, "dog": 5},
        "test": {"cat": 5, "dog": 5},
    }


def test_no_picture_is_in_two_splits_whatever_is_copied(tmp_path):
    root = folders(tmp_path / "data", cat=30, dog=30)
    for number in range(12):
        shutil.copy(root / "cat" / f"{number:03d}.png", root / "cat" / f"copy{number}.png")
    data = load(root, test=0.2)
    seen = [
        {data_set.pixels[row].tobytes() for row in range(len(data_set))}
        for data_set in (data.train, data.validation, data.test)
    ]
    assert len(set.union(*seen)) == sum(map(len, seen))
    assert "leak" in found(data)


def test_one_picture_with_two_labels_is_left_out_everywhere(root):
    shutil.copy(root / "train" / "cat" / "000.png", root / "train" / "dog" / "was_cat.png")
    shutil.copy(root / "validation" / "cat" / "001.png", root / "train" / "dog" / "too.png")
    data = load(root)
    assert set(found(data)["two-labels"]) == {
        "train/cat/000.png",
        "train/dog/was_cat.png",
        "validation/cat/001.png",
        "train/dog/too.png",
    }
    assert data.counts["train"] == {"cat": 19, "dog": 20}
    assert data.counts["validation"] == {"cat": 4, "dog": 5}


def test_repeats_are_kept_in_training_and_count_once_in_evaluation(root):
    for split in ("train", "validation"):
        shutil.copy(root / split / "cat" / "000.png", root / split / "cat" / "again.png")
    data = load(root)
    assert found(data) == {
        "repeated": ("train/cat/000.png", "train/cat/again.png"),
        "repeated-evaluation": ("validation/cat/again.png",),
    }
    assert data.counts["train"]["cat"] == 21
    assert data.counts["validation"]["cat"] == 5


def test_numbers_taken_for_classes_are_refused_with_the_task_for_numbers(tmp_path):
    folders(tmp_path / "cells", 9000, **{"4": 1, "18.5": 3, "25": 3})
    said = refused(tmp_path / "cells")
    assert "in: 4 (1); add images" in said
    assert said.endswith("if the labels are amounts, set task=regression")


def test_classes_that_cannot_be_learned_are_refused(root):
    folders(root / "validation", 9000, owl=2)
    assert "validation holds classes without a training image: owl" in refused(root)
    folders(root / "train", 9100, owl=1)
    said = refused(root)
    assert "fewer than 2 usable training images in: owl (1)" in said
    assert "amounts" not in said
    data = load(root, min_per_class=1)
    assert data.labels == ("cat", "dog", "owl")
    assert done(data, "not-in-test") == (
        "trained on, but test has no image of owl: nothing is measured"
    )


def test_a_class_that_is_lost_to_copies_says_so(root):
    folders(root / "train", 9000, owl=2)
    shutil.copytree(root / "train" / "owl", root / "validation" / "owl")
    message = refused(root)
    assert "validation holds classes without a training image: owl" in message
    assert "2 copies of other pictures were left out" in message


def test_no_validation_is_refused(tmp_path):
    root = folders(tmp_path / "data", cat=5, dog=5)
    assert "set data.validation above 0" in refused(root, validation=0.0)


@pytest.mark.parametrize(
    ("task", "count", "options", "words"),
    [
        ("classification", 2, {"min_per_class": 1}, "a share of 0.1 of so few"),
        ("regression", 10, {}, "a share of 0.1 of so few comes to none; add images"),
        ("multi_label", 4, {}, "comes to none; add images or make the share larger"),
    ],
)
def test_a_share_that_comes_to_none_says_what_helps(tmp_path, task, count, options, words):
    rows = [f"{number}.png,{number}" for number in range(count)]
    if task == "multi_label":
        rows = [f"{number}.png,a" for number in range(count)]
    for number in range(count):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "list.csv").write_text("\n".join(["image,label", *rows]))
    spec = DataSpec(str(tmp_path / "list.csv"), validation=0.1, **options)
    with pytest.raises(DataError, match=f"no validation images: .*{words}"):
        load_data(spec, SETTINGS, 0, tmp_path / "cache", task=task)


def test_validation_images_without_a_label_say_so(tmp_path):
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    rows = ["0.png,a,train", "1.png,b,train", "2.png,,val", "3.png,,val"]
    (tmp_path / "list.csv").write_text("\n".join(["image,label,split", *rows]))
    spec = DataSpec(str(tmp_path / "list.csv"), min_per_class=1)
    with pytest.raises(DataError, match="the 2 there show none of the labels"):
        load_data(spec, SETTINGS, 0, tmp_path / "cache", task="multi_label")


def test_validation_images_of_which_none_can_be_used_say_so(root):
    shutil.rmtree(root / "validation")
    shutil.copytree(root / "test", root / "validation")
    assert "no validation images: all 10 cannot be read, or are copies" in refused(root)


def test_imbalance_is_named_with_its_numbers(tmp_path):
    data = load(folders(tmp_path / "data", cat=40, dog=10))
    assert data.audit.imbalance == 4.0
    assert "32 images of cat, 8 of dog" in done(data, "imbalance")
    assert "loss: balanced" in done(data, "imbalance")


def test_files_that_are_no_images_are_listed(root):
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "bird").mkdir()
    assert found(load(root))["ignored"] == ("train/bird/", "train/cat/notes.txt")


def test_at_most_fifty_names_and_the_count(root):
    for number in range(NAMED + 10):
        image = picture(7000 + number).convert("L")
        image.save(root / "train" / "dog" / f"gray{number:03d}.png")
    (finding,) = (f for f in load(root).audit.findings if f.kind == "grayscale")
    assert finding.count == NAMED + 10
    assert len(finding.files) == NAMED


def test_limits_hold_after_the_audit_has_taken_its_own(tmp_path):
    root = folders(tmp_path / "data", cat=30, dog=30)
    exact = load(root, train_per_class=10, validation_per_class=4)
    victim = next(name for name in exact.train.files if name.startswith("cat"))
    (root / victim).write_bytes(b"")
    data = load(root, train_per_class=10, validation_per_class=4)
    assert data.counts == {
        "train": {"cat": 10, "dog": 10},
        "validation": {"cat": 4, "dog": 4},
    }
    assert victim not in data.train.files
    assert len(set(data.train.files) & set(exact.train.files)) == 19
    assert found(data) == {"zero-byte": (victim,)}


def test_the_audit_of_the_real_flowers_finds_their_double_labels(flowers, tmp_path):
    data = load_data(DataSpec(str(flowers)), SETTINGS, 0, tmp_path)
    kinds = {finding.kind: finding for finding in data.audit.findings}
    near = {kind: kinds.pop(kind).count for kind in list(kinds) if kind.startswith("near-")}
    assert set(kinds) <= {"two-labels", "repeated", "leak", "repeated-evaluation"}
    assert kinds["two-labels"].count == 8  # four photos are filed as a rose and as a tulip
    assert 0 < sum(near.values()) < 60  # photos saved again: few of 4,317
    assert data.audit.bad == 0


# --- several labels and numbers --------------------------------------------------------------


def listed(root: Path, rows: list[tuple[str, int, str, str]], head: str) -> Path:
    """Pictures by their seeds, and a table of name, cells and split."""
    root.mkdir(parents=True)
    for name, seed, _, _ in rows:
        picture(seed).save(root / name)
    lines = [f"{name},{cells},{split}\n" for name, _, cells, split in rows]
    (root / "table.csv").write_text(f"image,{head},split\n" + "".join(lines))
    return root / "table.csv"


def told(path: Path, task: str, **options) -> ImageData:
    spec = DataSpec(str(path), **options)
    return load_data(spec, SETTINGS, 0, path.parent.parent / "cache", task=task)


def test_images_without_a_label_and_labels_on_every_image_are_named(tmp_path):
    rows = [(f"{i}.png", i, "a|b" if i % 2 else "a", "train") for i in range(6)]
    rows += [("7.png", 7, "a", "validation"), ("8.png", 8, "", "validation")]
    data = told(listed(tmp_path / "data", rows, "label"), "multi_label")
    assert found(data) == {"no-label": ("8.png",), "always-there": (), "not-in-validation": ()}
    assert "every training image has a" in done(data, "always-there")
    assert data.train.labels.tolist() == [[1, 0], [1, 1]] * 3
    assert data.train.labels.dtype == np.float32
    assert data.counts["train"] == {"a": 6, "b": 3}


def test_a_label_with_too_few_images_is_refused_by_name(tmp_path):
    rows = [(f"{i}.png", i, "a|b" if i == 0 else "a", "train") for i in range(6)]
    rows += [("7.png", 7, "a", "validation")]
    with pytest.raises(DataError, match=r"fewer than 2 usable .* b \(1\); .* remove the label"):
        told(listed(tmp_path / "data", rows, "label"), "multi_label")


@pytest.mark.parametrize(("task", "cells"), [("multi_label", "ab"), ("regression", "12")])
def test_the_same_picture_is_a_leak_or_a_contradiction_whatever_is_told(tmp_path, task, cells):
    one, other = cells
    both = f"{one}|{other}" if task == "multi_label" else "3"
    rows = [(f"{i}.png", i, cells[i % 2], "train") for i in range(6)]
    rows += [("twin.png", 0, one, "validation"), ("odd.png", 1, both, "train")]
    rows += [("7.png", 7, other, "validation"), ("8.png", 8, one, "validation")]
    data = told(listed(tmp_path / "data", rows, "label"), task)
    assert found(data)["leak"] == ("0.png",)
    assert found(data)["two-labels"] == ("1.png", "odd.png")
    assert len(data.train) == 4


def test_numbers_are_standard_for_the_training_images_alone(tmp_path):
    rows = [(f"{i}.png", i, f"{100 + i},{i * i}", "train") for i in range(6)]
    rows += [("9.png", 9, "200,0", "validation")]
    data = told(listed(tmp_path / "data", rows, "x,y"), "regression", label_columns=("x", "y"))
    np.testing.assert_allclose(data.train.labels.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(data.train.labels.std(0), 1, atol=1e-6)
    np.testing.assert_allclose(data.scale.to_units(data.validation.labels), [[200, 0]], atol=1e-4)
    assert data.train.scale == data.validation.scale == data.scale
    assert data.train.subset([1, 2]).scale == data.scale


def test_a_target_that_is_always_the_same_is_refused(tmp_path):
    rows = [(f"{i}.png", i, "5", "train") for i in range(4)] + [("9.png", 9, "6", "validation")]
    with pytest.raises(DataError, match="target 'x' is 5 in every training image"):
        told(listed(tmp_path / "data", rows, "x"), "regression", label_column="x")


def test_other_labels_or_numbers_have_another_fingerprint(tmp_path):
    prints = set()
    for k, cells in enumerate(("1", "1.5")):
        rows = [(f"{i}.png", i, str(i), "train") for i in range(4)]
        rows += [("9.png", 9, cells, "validation")]
        path = listed(tmp_path / str(k) / "data", rows, "x")
        prints.add(told(path, "regression", label_column="x").fingerprint)
    assert len(prints) == 2


# --- names -----------------------------------------------------------------------------------


def test_labels_that_look_alike_are_told(tmp_path):
    cafes = ("caf\u00e9", "cafe\u0301")
    rows = [
        (f"{i}.png", i, label, "train") for i, label in enumerate(("Daisy", "daisy", *cafes) * 2)
    ]
    rows += [("v.png", 99, "daisy", "validation")]
    data = told(listed(tmp_path / "data", rows, "label"), "classification")
    assert found(data)["alike-labels"] == ("Daisy", "daisy", cafes[1], cafes[0])
    assert "'Daisy' and 'daisy'" in done(data, "alike-labels")


def test_a_class_of_validation_that_is_almost_one_of_training_is_named_with_it(tmp_path):
    rows = [(f"{i}.png", i, "ab"[i % 2], "train") for i in range(6)]
    rows += [("7.png", 7, "A", "validation"), ("8.png", 8, "b", "validation")]
    with pytest.raises(DataError, match="without a training image: A; .*'A' and 'a' look alike"):
        told(listed(tmp_path / "data", rows, "label"), "classification")


def test_a_class_that_may_be_no_value_is_told(tmp_path):
    rows = [(f"{i}.png", i, ("cat", "None")[i % 2], "train") for i in range(6)]
    rows += [("7.png", 7, "cat", "validation")]
    data = told(listed(tmp_path / "data", rows, "label"), "classification")
    assert found(data)["doubtful-label"] == ("None",)


def test_files_elsewhere_are_named_without_their_folders(tmp_path):
    (tmp_path / "secret" / "x").mkdir(parents=True)
    picture(50).convert("L").save(tmp_path / "secret" / "x" / "gray.png")
    rows = [(f"{i}.png", i, "ab"[i % 2], "train") for i in range(6)]
    rows += [("7.png", 7, "a", "validation")]
    path = listed(tmp_path / "data", rows, "label")
    with path.open("a") as file:
        file.write(f"{tmp_path}/secret/x/gray.png,a,train\n../secret/x/gray.png,a,train\n")
    data = told(path, "classification")
    assert found(data)["grayscale"] == ("…/x/gray.png", "…/x/gray.png")
    assert "secret" not in json.dumps(data.audit.to_dict())
