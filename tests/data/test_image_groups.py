"""Groups: images of one patient stay in one split; splits still have their share of every class."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_transfer.base.errors import DataError
from hf_transfer.data.image_groups import groups_of, likely_groups
from hf_transfer.data.image_set import load_data
from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.data.sources import Scan, scan
from hf_transfer.data.splits import draw_order, iterative
from hf_transfer.recipe.specs import DataSpec

BY_DIGITS = r"^(\d+)_"


def splits_of(scanned: Scan) -> dict[str, set[str]]:
    assert scanned.groups is not None
    found: dict[str, set[str]] = {}
    for group, split in zip(scanned.groups, scanned.splits, strict=True):
        found.setdefault(group, set()).add(split)
    return found


def patients(root: Path, sizes: dict[str, list[int]]) -> Path:
    """Class folders with files called PATIENT_NUMBER.jpg, as many of each patient as is said."""
    patient = 0
    for label, counts in sizes.items():
        (root / label).mkdir(parents=True)
        for count in counts:
            patient += 1
            for number in range(count):
                (root / label / f"{patient:05d}_{number:03d}.jpg").write_bytes(b"x")
    return root


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_in_one_split_and_classes_have_their_share(tmp_path, seed):
    draw = random.Random(seed)
    sizes = {
        label: [draw.choice((1, 1, 1, 2, 3, 8)) for _ in range(count)]
        for label, count in (("a", 120), ("b", 60), ("c", 30))
    }
    root = patients(tmp_path / "data", sizes)
    scanned = scan(DataSpec(str(root), test=0.1, group=BY_DIGITS), seed)
    assert all(len(splits) == 1 for splits in splits_of(scanned).values())
    for split, share in (("validation", 0.2), ("test", 0.1)):
        for label, counts in sizes.items():
            assert abs(scanned.counts[split][label] / sum(counts) - share) < 0.05, (split, label)


def test_the_split_of_groups_depends_on_names_and_seed_alone():
    names = [f"{n % 40:02d}_{n}.jpg" for n in range(200)]
    groups = np.array([n % 40 for n in range(200)])
    targets = [(n % 40 % 3,) for n in range(200)]
    shares = {"validation": 0.2}

    def drawn(seed: int, rows: np.ndarray) -> set[int]:
        found = iterative(rows, targets, draw_order(names, seed), shares, groups)
        return set(found["validation"].tolist())

    rows = np.arange(200)
    assert drawn(0, rows) == drawn(0, rows[::-1]) != drawn(1, rows)
    assert abs(len(drawn(0, rows)) - 40) <= 5


def test_groups_of_one_image_are_drawn_as_without_groups():
    targets = [(n % 3, 3) if n % 7 else (n % 3,) for n in range(90)]
    order = draw_order([str(n) for n in range(90)], 4)
    plain = iterative(np.arange(90), targets, order, {"test": 0.3})
    grouped = iterative(np.arange(90), targets, order, {"test": 0.3}, np.arange(90))
    assert plain["test"].tolist() == grouped["test"].tolist()


@pytest.mark.parametrize(("task", "cells"), [("regression", "0123456789"), ("multi_label", "ab")])
def test_groups_stay_together_in_every_task_and_may_be_a_column(tmp_path, task, cells):
    rows = [f"{n}.jpg,{cells[n % len(cells)]},p{n // 4}" for n in range(200)]
    (tmp_path / "l.csv").write_text("\n".join(["image,label,patient", *rows]))
    scanned = scan(DataSpec(str(tmp_path / "l.csv"), group="patient"), task=task)
    assert set(splits_of(scanned)) == {f"p{n}" for n in range(50)}
    assert all(len(splits) == 1 for splits in splits_of(scanned).values())
    assert abs(scanned.images["validation"] - 40) <= 4


def test_a_column_of_datasets_may_be_the_group(tmp_path):
    import datasets

    rows = {"image": ["x.png"] * 40, "label": ["a", "b"] * 20, "site": [n // 4 for n in range(40)]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "d"))
    scanned = scan(DataSpec(str(tmp_path / "d"), group="site"))
    assert all(len(splits) == 1 for splits in splits_of(scanned).values())
    assert len(splits_of(scanned)) == 10
    with pytest.raises(DataError, match="no column 'patient'"):
        scan(DataSpec(str(tmp_path / "d"), group="patient"))


def test_names_give_groups_by_their_last_part_or_by_all_of_it():
    names = ("a/01_1.jpg", "a/02_1.jpg", "b/01_2.jpg", "b/x.jpg")
    assert groups_of(names, BY_DIGITS) == ["01", "02", "01", "b/x.jpg"]
    assert groups_of(names, r"^(\w)/") == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("patient", "there is no such column, and a pattern needs one group in parentheses"),
        (r"(\d)(\d)", "a pattern needs one group"),
        ("(", "cannot read data.group '\\('"),
        (r"^(site\d)", "matches no image's name; one is 00001_000.jpg"),
    ],
)
def test_a_pattern_that_gives_no_groups_is_refused_in_a_line(tmp_path, pattern, says):
    root = patients(tmp_path / "data", {"a": [2, 2], "b": [2]})
    with pytest.raises(DataError, match=says) as caught:
        scan(DataSpec(str(root), group=pattern))
    assert "\n" not in str(caught.value)


def test_a_row_without_its_group_is_named(tmp_path):
    (tmp_path / "l.csv").write_text("image,label,patient\n1.jpg,a,x\n2.jpg,b,\n")
    with pytest.raises(DataError, match="l.csv:3: no patient"):
        scan(DataSpec(str(tmp_path / "l.csv"), group="patient"))


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("{patient:08d}_{number:03d}.png", r"^(\d{3,})[-_ ]"),
        ("IM{patient:04d}-{number}.png", r"^([A-Za-z]{1,5}[-_]?\d{2,})[-_ ]"),
        ("x_Patient-{patient}_{number}.png", "(?i)((?:patient|"),
        ("walk in {patient} park_frame{number:04d}.jpg", "^(.+?)[-_ ](?:frame"),
    ],
)
def test_names_of_patients_and_videos_are_found(name, pattern):
    names = [name.format(patient=n // 5, number=n % 5) for n in range(200)]
    likely = likely_groups(names, [n % 2 for n in range(200)], ["train", "validation"] * 100)
    assert likely is not None
    assert likely.pattern.startswith(pattern)
    assert (likely.groups, len(likely.across)) == (40, 40)
    assert len(set(groups_of(names, likely.pattern))) == 40
    apart = ["train" if n // 5 % 2 else "validation" for n in range(200)]
    assert likely_groups(names, [0] * 200, apart) is None


@pytest.mark.parametrize(
    "name", ["{n:05d}.jpg", "img_{n}.jpg", "{label}_{n:03d}.jpg", "{n:06d}_b88d3d.jpg", "{n} a.png"]
)
def test_names_that_only_number_images_suggest_no_groups(name):
    names = [name.format(n=n, label=f"class{n % 20}") for n in range(400)]
    assert likely_groups(names, [n % 20 for n in range(400)], ["train", "test"] * 200) is None


def load(root: Path, **options):
    settings = ImageSettings(8)
    return load_data(DataSpec(str(root), **options), settings, 0, root.parent / "cache")


def test_the_audit_tells_likely_groups_and_a_recipes_groups_silence_it(tmp_path):
    root = patients(tmp_path / "data", {"a": [4] * 12, "b": [4] * 12})
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(path, "PNG")
    (finding,) = (f for f in load(root).audit.findings if f.kind == "likely-groups")
    assert r"set data.group: '^(\d{3,})[-_ ]'" in finding.done
    grouped = load(root, group=r"^(\d{3,})[-_ ]")
    assert "likely-groups" not in {f.kind for f in grouped.audit.findings}
    of = [name.split("/")[1][:5] for name in grouped.validation.files]
    assert set(Counter(of).values()) == {4}


def test_groups_across_given_splits_and_names_without_a_group_are_told(tmp_path):
    for n, name in enumerate(("train/a/1_1", "train/b/2_1", "train/a/3_1", "train/b/x")):
        path = tmp_path / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (n, 0, 0)).save(path)
        if n < 2:
            path = tmp_path / "data" / f"val{name[5:7]}/{n + 1}_9.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (9, 9), (0, n + 1, 0)).save(path)
    data = load(tmp_path / "data", group=BY_DIGITS)
    told = {finding.kind: finding.files for finding in data.audit.findings}
    assert told["group-in-two-splits"] == ("1", "2")
    assert told["no-group"] == ("train/b/x.png",)
