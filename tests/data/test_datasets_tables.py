"""What `datasets` loads: images by bytes, structs and paths; classes matched by their names."""

import os
import shutil
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from hf_transfer.base.errors import DataError
from hf_transfer.data.datasets_tables import is_datasets
from hf_transfer.data.sources import Scan, scan
from hf_transfer.recipe.specs import DataSpec

NAMES = ["dog", "cat"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(number: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def found(path: Path, task: str = "classification", **options) -> Scan:
    return scan(DataSpec(str(path), **{"validation": 0.0, **options}), task=task)


def refused(path: Path, task: str = "classification", **options) -> str:
    with pytest.raises(DataError) as caught:
        found(path, task, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def content(scanned: Scan) -> list[bytes]:
    read = []
    for row in range(len(scanned.files)):
        with scanned.opened(row) as data:
            read.append(data)
    return read


def saved(root: Path, names: list[str], labels: list[int], **splits: tuple[list[str], list[int]]):
    """A DatasetDict on disk; each split has its own names of classes."""
    made = {}
    for split, (its_names, its_labels) in {"train": (names, labels), **splits}.items():
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=its_names)}
        columns = {"image": [{"bytes": png(n)} for n in its_labels], "label": its_labels}
        made[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    datasets.DatasetDict(made).save_to_disk(str(root))
    return root


COLUMNS = {
    "bytes": lambda folder: pyarrow.array([png(n) for n in range(6)]),
    "large bytes": lambda folder: pyarrow.array([png(n) for n in range(6)], pyarrow.large_binary()),
    "structs": lambda folder: pyarrow.array([{"bytes": png(n), "path": None} for n in range(6)]),
    "structs of bytes": lambda folder: pyarrow.array([{"bytes": png(n)} for n in range(6)]),
    "structs of paths": lambda folder: pyarrow.array(
        [{"path": f"images/{n}.png", "bytes": None} for n in range(6)],
        pyarrow.struct({"path": pyarrow.string(), "bytes": pyarrow.binary()}),
    ),
    "paths": lambda folder: pyarrow.array([f"images/{n}.png" for n in range(6)]),
    "large paths": lambda folder: pyarrow.array(
        [f"images/{n}.png" for n in range(6)], pyarrow.large_string()
    ),
    "absolute paths": lambda folder: pyarrow.array([f"{folder}/images/{n}.png" for n in range(6)]),
    "paths of Windows": lambda folder: pyarrow.array([f"images\\{n}.png" for n in range(6)]),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("place", ["t.parquet", "train/0.parquet", "data/train-00000-of-1.parquet"])
def test_parquet_holds_images_in_every_usual_way(tmp_path, monkeypatch, kind, place):
    path = tmp_path / "source" / place
    (path.parent / "images").mkdir(parents=True)
    for number in range(6):
        (path.parent / "images" / f"{number}.png").write_bytes(png(number))
    labels = pyarrow.array(["cat", "dog"] * 3, pyarrow.large_string())
    more = pyarrow.array([{"x": [1, None]}] * 6)
    table = {"image": COLUMNS[kind](path.parent), "label": labels, "more": more}
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    monkeypatch.chdir("/")
    for source in {path, tmp_path / "source"}:
        scanned = found(source)
        assert scanned.labels == ("cat", "dog")
        assert content(scanned) == [png(number) for number in range(6)]


def test_what_pandas_writes_is_read(tmp_path):
    frame = pandas.DataFrame(
        {"path": [f"{n}.png" for n in range(6)], "label": ["a", "b", None] * 2}
    )
    frame.to_parquet(tmp_path / "text.parquet")
    scanned = found(tmp_path / "text.parquet")
    assert scanned.labels == ("a", "b")
    assert scanned.ignored == ("train/ (2 images without a label)",)
    frame["label"] = [0, 1, None] * 2  # pandas makes these 0.0, 1.0 and NaN
    frame.to_parquet(tmp_path / "number.parquet")
    assert found(tmp_path / "number.parquet").labels == ("0", "1")
    frame["label"] = pandas.Categorical(["a", "b", "a"] * 2)
    frame.to_parquet(tmp_path / "category.parquet")
    assert found(tmp_path / "category.parquet").labels == ("a", "b")


def test_folders_of_parquet_are_splits(tmp_path):
    for split, count in (("train", 6), ("val", 4), ("test_set", 2)):
        (tmp_path / "s" / split).mkdir(parents=True)
        frame = pandas.DataFrame(
            {"image": [png(n) for n in range(count)], "label": ["a", "b"] * (count // 2)}
        )
        frame.to_parquet(tmp_path / "s" / split / "0000.parquet")
    assert found(tmp_path / "s").images == {"train": 6, "validation": 4, "test": 2}
    frame.to_parquet(tmp_path / "s" / "more.parquet")
    assert "some tables name a split, and more.parquet does not" in refused(tmp_path / "s")


def test_classes_are_matched_by_name_whatever_their_order(tmp_path):
    root = saved(tmp_path / "d", ["dog", "cat"], [0, 1, 1], test=(["cat", "dog"], [0, 1, 1]))
    scanned = found(root)
    assert scanned.labels == ("dog", "cat")
    told = [scanned.labels[target] for target in scanned.targets]
    assert told == ["cat", "dog", "dog", "dog", "cat", "cat"]  # test, then train


def test_classes_that_do_not_match_are_refused(tmp_path):
    root = saved(tmp_path / "d", ["dog", "cat"], [0, 1], test=(["dog", "Cat"], [0, 1]))
    assert "the classes of test are not those of train: Cat, cat" in refused(root)


@pytest.mark.parametrize(
    ("keys", "images"),
    [
        (["training", "held_out"], {"train": 4, "test": 4}),
        (["train_set", "Validation"], {"train": 4, "validation": 4}),
        (["everything"], {"train": 4}),
    ],
)
def test_splits_may_have_other_names(tmp_path, keys, images):
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"image": [{"bytes": png(n)} for n in range(4)], "label": ["a", "b"] * 2}
    one = datasets.Dataset.from_dict(rows, features=kinds)
    datasets.DatasetDict(dict.fromkeys(keys, one)).save_to_disk(str(tmp_path / "d"))
    assert found(tmp_path / "d").images == images


def test_without_a_training_split_its_names_are_told(tmp_path):
    rows = {"image": [{"bytes": png(1)}], "label": ["a"]}
    one = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"one": one, "two": one}).save_to_disk(str(tmp_path / "d"))
    assert "no training split among one, two; call one of them train" in refused(tmp_path / "d")


def test_further_columns_of_any_kind_do_no_harm(tmp_path):
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    rows = {
        "id": [1, 2],
        "image": [picture] * 2,
        "label": [0, 1],
        "mask": [picture, None],
        "boxes": [[[1.0, 2.0]], []],
        "about": [{"a": 1, "b": ["x"]}, None],
        "text": ["x", "y" * 10_000],
    }
    made = datasets.Dataset.from_dict(rows)
    made = made.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    made.save_to_disk(str(tmp_path / "d"))
    scanned = found(tmp_path / "d")
    assert scanned.labels == ("0", "1")
    assert all(data.startswith(b"\x89PNG") for data in content(scanned))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0.5, 1.5], "a class is a text or a whole number"),
        ([["a"], ["b"]], "several labels of an image need task: multi_label"),
    ],
)
def test_labels_of_other_kinds_are_named_as_what_they_are(tmp_path, labels, says):
    frame = pandas.DataFrame({"image": [png(1), png(2)], "label": labels})
    frame.to_parquet(tmp_path / "t.parquet")
    assert says in refused(tmp_path / "t.parquet")


def test_damaged_tables_are_one_line(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + b"x" * 99)
    assert "t.parquet" in refused(tmp_path / "t.parquet")
    root = saved(tmp_path / "d", NAMES, [0, 1])
    (root / "dataset_dict.json").write_text("{")
    assert "cannot read data" in refused(root)
    pandas.DataFrame({"image": [], "label": []}).to_parquet(tmp_path / "none.parquet")
    assert "none.parquet: no rows; expected a row per image" in refused(tmp_path / "none.parquet")


def test_no_bars_are_drawn_on_standard_error(tmp_path, capfd):
    pandas.DataFrame({"image": [png(1), png(2)], "label": ["a", "b"]}).to_parquet(
        tmp_path / "t.parquet"
    )
    found(tmp_path / "t.parquet")
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize("kind", ["file", "folder", "saved"])
def test_tables_that_are_replaced_at_the_same_time_are_read_again(tmp_path, kind):
    """As tar and rsync leave them; `datasets` itself looks at the path and the time alone."""
    seen = []
    for first in (0, 100):
        images = [{"bytes": png(first + n), "path": None} for n in range(4)]
        table = pyarrow.table({"image": images, "label": ["a", "b"] * 2})
        place = tmp_path / "data"
        if kind == "saved":
            shutil.rmtree(place, ignore_errors=True)
            datasets.Dataset(table).cast_column("image", datasets.Image()).save_to_disk(place)
        else:
            file = place / "train.parquet" if kind == "folder" else place.with_suffix(".parquet")
            file.parent.mkdir(exist_ok=True)
            pyarrow.parquet.write_table(table, file, compression="none")
            place = place if kind == "folder" else file
        for path in (place, *place.glob("*")):
            os.utime(path, (1e9, 1e9))
        scanned = found(place)
        seen.append((content(scanned), [scanned.identity(row) for row in range(4)]))
    assert seen[0][0] != seen[1][0]
    assert not set(seen[0][1]) & set(seen[1][1])


@pytest.mark.parametrize("empty", [datasets.Dataset, datasets.DatasetDict])
def test_a_saved_data_set_without_rows_is_one_line(tmp_path, empty):
    rows = datasets.Dataset.from_dict({"image": [], "label": []})
    rows = rows if empty is datasets.Dataset else datasets.DatasetDict(train=rows)
    rows.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="no rows"):
        found(tmp_path / "saved")


def test_a_table_that_is_not_there_is_no_data_set_of_the_hub():
    assert not is_datasets(Path("tables/labels.csv"))
    assert not is_datasets(Path("tables/labels.parquet"))
