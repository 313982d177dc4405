"""Images without labels: any layout, labels ignored; what judges the target is kept out of them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from dicoms import dicom, ramp
from PIL import Image

from hf_transfer.base.errors import DataError
from hf_transfer.data.beside import check_apart
from hf_transfer.data.image_groups import owners
from hf_transfer.data.image_set import held_out, load_data
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.sources import scan
from hf_transfer.data.unlabelled import in_time, last_of_each, neighbours
from hf_transfer.recipe.load import parse_recipe
from hf_transfer.recipe.specs import DataSpec

SETTINGS = ImageSettings(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def labelled(tmp_path):
    for number in range(24):
        picture(tmp_path / "labelled" / "ab"[number % 2] / f"{number}.png", number)
    return tmp_path / "labelled"


def test_a_folder_is_split_independently_of_the_same_one_with_labels(tmp_path):
    """Else all that validates a pretext would be left out, for it validates the target."""
    for number in range(100):
        (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[number % 2] / f"{number}.png").touch()
    spec = DataSpec(path=str(tmp_path), validation=0.2)
    free, judged = scan(spec, 0, "contrastive"), scan(spec, 0)
    mine = {free.files[row] for row in free.splits.where("validation")}
    theirs = {judged.files[row] for row in judged.splits.where("validation")}
    assert len(mine) == len(theirs) == 20
    assert len(mine & theirs) < 10  # 4 by chance, 18 if both are drawn in the same order


def test_all_images_below_a_folder_are_taken_whatever_its_layout(tmp_path):
    for number, name in enumerate(("a.png", "train/b.png", "test/cat/c.png", "x/y/z/d.png")):
        picture(tmp_path / name, number)
    (tmp_path / "notes.txt").write_text("nothing")
    found = scan(DataSpec(path=str(tmp_path), validation=0.25), task="rotation")
    assert found.files == ("a.png", "test/cat/c.png", "train/b.png", "x/y/z/d.png")
    assert found.labels == ("image",)
    assert found.images == {"train": 3, "validation": 1}


@pytest.mark.parametrize(
    ("make", "words"),
    [(None, "no such folder"), (Path.mkdir, "no images"), (Path.touch, "is no folder")],
)
def test_a_folder_without_images_is_told_in_a_line(tmp_path, make, words):
    place = tmp_path / "none"
    if make:
        make(place)
    with pytest.raises(DataError, match=words):
        scan(DataSpec(path=str(place)), task="rotation")


def test_validation_and_test_pictures_of_the_target_are_left_out_by_content(labelled, tmp_path):
    target = DataSpec(path=str(labelled), validation=0.25, test=0.25)
    mine = tmp_path / "mine"
    shutil.copytree(labelled, mine / "copies")
    for number in range(100, 130):
        picture(mine / f"{number}.png", number)
    without = held_out(target, SETTINGS)
    judging = load_data(target, SETTINGS)
    assert len(without.pictures) == len(judging.validation) + len(judging.test) == 12
    spec = DataSpec(path=str(mine), validation=0.2)
    data = load_data(spec, SETTINGS, task="rotation", without=without)
    kept = {name.rpartition("/")[2] for name in (*data.train.files, *data.validation.files)}
    judged = {name.rpartition("/")[2] for name in (*judging.validation.files, *judging.test.files)}
    assert kept.isdisjoint(judged)
    assert len(kept) == 42
    (finding,) = [one for one in data.audit.findings if one.kind == "held-out"]
    assert finding.count == 12
    assert str(labelled) in finding.done


def of_patients(place, first, group, **more):
    """Lay out four images of each of eight patients, and return their source."""
    for number in range(32):
        folder = place / "ab"[number % 2] if first == 0 else place
        picture(folder / f"p{number // 4:02d}_{number}.png", first + number)
    return DataSpec(path=str(place), group=group, **more)


@pytest.mark.parametrize("own", [None, r"^p(\d+)_"])
def test_other_images_of_the_patients_who_judge_are_left_out_too(tmp_path, own):
    """By the target's group, or by one of their own that gives the same names."""
    target = of_patients(tmp_path / "labelled", 0, r"^p(\d+)_", validation=0.25, test=0.25)
    judging, without = load_data(target, SETTINGS), held_out(target, SETTINGS)
    spec = of_patients(tmp_path / "mine", 100, own, validation=0.25)
    data = load_data(spec, SETTINGS, task="rotation", without=without)
    kept = {name[:3] for name in (*data.train.files, *data.validation.files)}
    judged = {Path(f).name[:3] for f in (*judging.validation.files, *judging.test.files)}
    assert kept.isdisjoint(judged)
    assert len(kept | judged) == 8
    (finding,) = [one for one in data.audit.findings if one.kind == "held-out-group"]
    assert finding.count == 4 * len(judged)


def test_dicom_patients_are_told_by_their_tag_wherever_their_files_lie(tmp_path):
    def scanned(place, patients):
        for number, patient in enumerate(patients):
            path = place / "ab"[number % 2] / f"{number}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            dicom(path, ramp(), PatientID=patient)
        return scan(DataSpec(path=str(place), group="dicom:PatientID", validation=0.0))

    one, two = scanned(tmp_path / "one", "ABCD"), scanned(tmp_path / "two", "DXBY")
    assert list(one.groups) == list(two.groups)  # numbers of each folder's own
    assert owners(one, "dicom:PatientID") == list("ACBD")  # in the order of their names
    assert owners(two, "dicom:PatientID") == list("DBXY")


def test_images_whose_patients_cannot_be_told_are_kept_and_a_finding_says_so(tmp_path):
    target = of_patients(tmp_path / "labelled", 0, r"^p(\d+)_", validation=0.25)
    for number in range(10):
        picture(tmp_path / "mine" / f"{number}.png", 100 + number)
    spec = DataSpec(path=str(tmp_path / "mine"))
    data = load_data(spec, SETTINGS, task="rotation", without=held_out(target, SETTINGS))
    (finding,) = [one for one in data.audit.findings if one.kind == "no-group"]
    assert "source.data.group" in finding.done
    assert len(data.train) + len(data.validation) == 10


def test_a_folder_whose_few_validation_pictures_are_held_out_says_to_take_more(labelled):
    without = held_out(DataSpec(path=str(labelled), validation=0.5), SETTINGS)
    spec = DataSpec(path=str(labelled), validation=0.01, min_per_class=1)
    seen = set()
    for seed in range(12):  # one of which draws a picture that is held out
        try:
            load_data(spec, SETTINGS, seed, task="rotation", without=without)
        except DataError as error:
            seen.add("none is left to validate on; raise source.data.validation" in str(error))
    assert seen == {True}


def test_a_folder_of_nothing_but_held_out_pictures_is_refused(labelled):
    target = DataSpec(path=str(labelled), validation=0.9)
    with pytest.raises(DataError, match="(too few are|none is) left to"):
        load_data(
            DataSpec(path=str(labelled), validation=0.01, min_per_class=1),
            SETTINGS, task="rotation", without=held_out(target, SETTINGS),
        )  # fmt: skip


def test_frames_are_in_the_order_of_their_numbers_and_the_last_of_each_folder_validate():
    names = ["b/frame10.png", "a/2.png", "b/frame9.png", "a/10.png", "a/1.png"]
    files = tuple(sorted(names, key=in_time))
    assert files == ("a/1.png", "a/2.png", "a/10.png", "b/frame9.png", "b/frame10.png")
    long = tuple(f"{folder}/{frame}.png" for folder in "ab" for frame in range(10))
    assert last_of_each(long, 0.2) == [*["train"] * 8, *["validation"] * 2] * 2
    assert last_of_each((), 0.5) == []
    assert neighbours(files).tolist() == [1, 2, 1, 4, 3]
    assert neighbours(("a/1.png", "b/1.png", "c/1.png")).tolist() == [0, 1, 2]


def test_frames_of_short_videos_validate_in_pairs():
    files = tuple(f"v{video:02d}/{frame}.png" for video in range(20) for frame in range(5))
    splits = last_of_each(files, 0.1)
    held = [name for name, split in zip(files, splits, strict=True) if split == "validation"]
    assert len(held) == 10
    assert all(held[i].partition("/")[0] == held[i + 1].partition("/")[0] for i in range(0, 10, 2))
    assert neighbours(held).tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8]


def test_folders_of_one_frame_each_are_no_videos(tmp_path):
    for number in range(6):
        picture(tmp_path / f"v{number}" / "0.png", number)
    with pytest.raises(DataError, match="no folder has two images, and slow learns from frames"):
        scan(DataSpec(path=str(tmp_path)), task="slow")


@pytest.mark.parametrize(("task", "held"), [("contrastive", 2), ("rotation", 1)])
def test_what_compares_images_has_two_to_validate_on_at_least(labelled, task, held):
    found = scan(DataSpec(path=str(labelled), validation=0.02), task=task)
    assert found.images == {"train": 24 - held, "validation": held}


def test_images_without_labels_in_a_folder_that_is_a_class_are_refused(labelled):
    picture(labelled / "rest" / "1.png", 1)
    picture(labelled / "rest" / "2.png", 2)
    text = (
        "source: {pretext: rotation, backbone: timm/test_resnet, data: {path: REST},\n"
        "  phases: [{train: all, epochs: 1}]}\ndata: {path: LABELLED}\n"
        "phases: [{train: head, solve: lbfgs}]\n"
    ).replace("LABELLED", str(labelled))
    rest = labelled / "rest"
    with pytest.raises(DataError, match="rest: this folder .* is also a class of .*, 'rest'; move"):
        check_apart(parse_recipe(text.replace("REST", str(rest)), "x.yaml"))
    check_apart(parse_recipe(text.replace("REST", str(labelled)), "x.yaml"))


def test_exemplars_are_measured_on_other_variations_of_images_that_train(labelled):
    """An image that did not train has no class there."""
    data = load_data(DataSpec(path=str(labelled), validation=0.25), SETTINGS, task="exemplar")
    assert data.validation.files == data.train.files[: len(data.validation)]
    assert len(data.validation) == 6
