"""Sources: every kind of source becomes the same list, and mistakes are named in one line."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_transfer.base.errors import DataError, UserError
from hf_transfer.data.datasets_tables import ImageTable
from hf_transfer.data.sources import scan
from hf_transfer.recipe.specs import DataSpec


def make(root: Path, *names: str) -> Path:
    """Files without content: nothing is decoded here."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def classes(root: Path, prefix: str = "", **counts: int) -> Path:
    for label, count in counts.items():
        make(root, *(f"{prefix}{label}/{number:03d}.jpg" for number in range(count)))
    return root


def names(found, split: str) -> set[str]:
    return {name for name, here in zip(found.files, found.splits, strict=True) if here == split}


def content(source, which) -> bytes:
    with source.opened(which) as data:
        return data


def refused(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        scan(DataSpec(str(path), **options))
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- class folders ---------------------------------------------------------------------------


def test_class_folders_are_split_class_by_class(tmp_path):
    found = scan(DataSpec(str(classes(tmp_path, cat=10, dog=50)), validation=0.2, test=0.1))
    assert found.labels == ("cat", "dog")
    assert found.counts == {
        "train": {"cat": 7, "dog": 35},
        "validation": {"cat": 2, "dog": 10},
        "test": {"cat": 1, "dog": 5},
    }
    assert list(found.files) == sorted(found.files)


def test_the_split_depends_on_names_and_seed_alone(tmp_path, monkeypatch):
    spec = DataSpec(str(classes(tmp_path, cat=40, dog=40)))
    whole = scan(spec, 1)
    assert scan(spec, 1) == whole
    assert names(scan(spec, 2), "validation") != names(whole, "validation")
    listing = os.scandir

    class Shuffled(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    def shuffled(folder):
        with listing(folder) as entries:
            found = list(entries)
        random.shuffle(found)
        return Shuffled(found)

    monkeypatch.setattr(os, "scandir", shuffled)
    assert scan(spec, 1) == whole


def test_a_new_class_moves_no_image_of_the_others(tmp_path):
    spec = DataSpec(str(classes(tmp_path, cat=40, dog=40)))
    before = names(scan(spec), "validation")
    classes(tmp_path, ant=20)
    assert before < names(scan(spec), "validation")


def test_limits_are_drawn_at_random_and_smaller_ones_are_subsets(tmp_path):
    root = str(classes(tmp_path, cat=100, dog=100))
    few, more = (
        scan(DataSpec(root, train_per_class=limit, validation_per_class=7), 3) for limit in (5, 20)
    )
    assert few.counts == {"train": {"cat": 5, "dog": 5}, "validation": {"cat": 7, "dog": 7}}
    assert names(few, "train") < names(more, "train")
    assert names(few, "validation") == names(more, "validation")
    assert names(few, "train") != {f"{c}/{n:03d}.jpg" for c in ("cat", "dog") for n in range(5)}


def test_a_class_of_one_stays_in_train(tmp_path):
    found = scan(DataSpec(str(classes(tmp_path, cat=10, dog=1))))
    assert found.counts["train"]["dog"] == 1
    assert found.counts["validation"] == {"cat": 2, "dog": 0}


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "Dev"])
def test_split_folders_are_taken_as_they_are(tmp_path, validation):
    for split, count in (("train", 9), (validation, 4), ("test", 3)):
        classes(tmp_path, f"{split}/", cat=count, dog=count)
    found = scan(DataSpec(str(tmp_path), validation=0.5, test=0.4))
    assert found.labels == ("cat", "dog")
    assert found.counts == {
        "train": {"cat": 9, "dog": 9},
        "validation": {"cat": 4, "dog": 4},
        "test": {"cat": 3, "dog": 3},
    }


def test_a_missing_validation_folder_is_drawn_from_train(tmp_path):
    for split, count in (("train", 10), ("test", 4)):
        classes(tmp_path, f"{split}/", cat=count, dog=count)
    found = scan(DataSpec(str(tmp_path)))
    assert {split: sum(n.values()) for split, n in found.counts.items()} == {
        "train": 16,
        "validation": 4,
        "test": 8,
    }
    assert all(name.startswith("train/") for name in names(found, "validation"))


def test_a_class_may_be_called_train(tmp_path):
    found = scan(DataSpec(str(classes(tmp_path, bus=5, train=5))))
    assert found.labels == ("bus", "train")


def test_labels_that_are_numbers_are_in_numerical_order(tmp_path):
    root = classes(tmp_path, **{str(number): 2 for number in (10, 9, 2)})
    assert scan(DataSpec(str(root))).labels == ("2", "9", "10")


def test_what_is_no_labelled_image_is_listed_or_hidden(tmp_path):
    classes(tmp_path, cat=3, dog=3)
    make(tmp_path, "README.md", "loose.jpg", "cat/notes.txt", "cat/more/deep.PNG")
    (tmp_path / "cat" / "bare").write_bytes(b"\xff\xd8\xff\xe0")
    make(tmp_path, ".git/x.jpg", "cat/._1.jpg", "__MACOSX/cat/1.jpg", "cat/Thumbs.db", "docs/a.txt")
    found = scan(DataSpec(str(tmp_path)))
    assert found.ignored == ("README.md", "cat/notes.txt", "docs/", "loose.jpg")
    assert {"cat/more/deep.PNG", "cat/bare"} < set(found.files)
    assert len(found.files) == 8


def test_links_that_lead_back_are_followed_once(tmp_path):
    classes(tmp_path / "data", cat=3, dog=3)
    classes(tmp_path / "elsewhere", bird=2)
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data" / "cat")
    (tmp_path / "data" / "bird").symlink_to(tmp_path / "elsewhere" / "bird")
    found = scan(DataSpec(str(tmp_path / "data")))
    assert found.labels == ("bird", "cat", "dog")
    assert len(found.files) == 8


def test_names_that_are_not_unicode_are_names_too(tmp_path):
    root = os.fsencode(classes(tmp_path, cat=5, dog=5))
    with open(root + b"/cat/\xff\xfe.jpg", "wb") as file:
        file.write(b"x")
    found = scan(DataSpec(str(tmp_path), train_per_class=3))
    assert len(found.files) == 8


def test_a_label_that_is_not_unicode_is_refused_with_what_to_do(tmp_path):
    classes(tmp_path, cat=5, **{os.fsdecode(b"caf\xe9"): 5})
    assert r"the label 'caf\udce9' is not UTF-8" in refused(tmp_path)
    (tmp_path / "l.jsonl").write_text('{"image": "1", "label": "\\udce9"}\n' * 2)
    assert "change it in the table" in refused(tmp_path / "l.jsonl")


def test_reading_and_identity_follow_the_file(tmp_path):
    found = scan(DataSpec(str(classes(tmp_path, cat=3, dog=3))))
    assert content(found, 0) == b"x"
    before = found.identity(0)
    assert found.identity(0) == before
    (tmp_path / found.files[0]).write_bytes(b"yy")
    assert found.identity(0) != before
    (tmp_path / found.files[0]).unlink()
    assert found.identity(0).endswith("missing")


# --- mistakes --------------------------------------------------------------------------------


def test_mistakes_with_folders_are_named(tmp_path):
    root = classes(tmp_path / "flowers", cat=3, dog=3)
    message = refused(tmp_path / "flowrs")
    assert "no such folder" in message
    assert f"nearest: {root}" in message
    assert "no such folder" in refused("/nowhere/at/all")
    assert "only one class, 'flowers'" in refused(tmp_path)
    assert f"did you mean {root}?" in refused(tmp_path)
    make(tmp_path, "flowers.zip", "photo.jpg")
    assert "unpack it first" in refused(tmp_path / "flowers.zip")
    assert "a file, not a folder" in refused(tmp_path / "photo.jpg")
    (tmp_path / "empty").mkdir()
    assert "no images; expected one folder per class" in refused(tmp_path / "empty")
    make(tmp_path / "heap", *(f"{number}.jpg" for number in range(12)), "labels.csv")
    message = refused(tmp_path / "heap")
    assert "images lie in the folder itself (12)" in message
    assert "labels.csv" in message
    assert "needs at least two" in refused(classes(tmp_path / "one", cat=5))


def test_split_folders_without_classes_are_named(tmp_path):
    make(tmp_path / "a", "train/1.jpg", "val/2.jpg")
    assert "which hold no folders" in refused(tmp_path / "a")
    classes(tmp_path / "b", "val/", cat=3, dog=3)
    classes(tmp_path / "b", "test/", cat=3, dog=3)
    told = "no training images, only test and validation; call the split to train on train"
    assert refused(tmp_path / "b").endswith(told)


def test_no_path_is_a_mistake():
    with pytest.raises(DataError, match="--data"):
        scan(DataSpec(None))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    classes(tmp_path, cat=3, dog=3)
    (tmp_path / "cat").chmod(0)
    try:
        assert "Permission denied" in refused(tmp_path)
    finally:
        (tmp_path / "cat").chmod(0o755)


# --- tables ----------------------------------------------------------------------------------

PAIRS = [(f"images/{number}.jpg", ("cat", "dog")[number % 2]) for number in range(20)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "image,label\n" + "".join(f"{a},{b}\n" for a, b in PAIRS)),
        ("l.csv", "\ufefffile_name;class\r\n" + "".join(f'"{a}";{b}\r\n' for a, b in PAIRS)),
        ("l.tsv", "path\tlabel\textra\n" + "".join(f"./{a}\t{b}\tx\n" for a, b in PAIRS)),
        ("l.jsonl", "\n".join(json.dumps({"image": a, "label": b}) for a, b in PAIRS)),
    ],
)
def test_every_table_is_the_same_list_as_the_folders(tmp_path, name, text):
    table = tmp_path / name
    table.write_text(text, encoding="utf-8")
    found = scan(DataSpec(str(table)), 5)
    assert found.labels == ("cat", "dog")
    assert sorted(PAIRS) == [
        (file, found.labels[target])
        for file, target in zip(found.files, found.targets, strict=True)
    ]
    assert found.counts["validation"] == {"cat": 2, "dog": 2}
    assert found.root == tmp_path
    (tmp_path / "other.csv").write_text("image,label\n" + "".join(f"{a},{b}\n" for a, b in PAIRS))
    assert scan(DataSpec(str(tmp_path / "other.csv")), 5).splits == found.splits


def test_a_tables_splits_are_kept(tmp_path):
    table = tmp_path / "l.csv"
    rows = [f"{n}.png,{n % 3},{('train', 'Val', 'test')[n // 10]}" for n in range(30)]
    table.write_text("image,label,split\n" + "\n".join(rows))
    found = scan(DataSpec(str(table), validation=0.5))
    assert {split: sum(n.values()) for split, n in found.counts.items()} == {
        "train": 10,
        "validation": 10,
        "test": 10,
    }
    assert found.labels == ("0", "1", "2")


def test_columns_can_be_named(tmp_path):
    table = tmp_path / "l.csv"
    table.write_text("scan,diagnosis,label\n1.png,a,z\n2.png,b,z\n3.png,a,z\n4.png,b,z\n")
    spec = DataSpec(str(table), image_column="scan", label_column="diagnosis")
    assert scan(spec).labels == ("a", "b")


def test_mistakes_in_tables_are_named_with_their_line(tmp_path):
    def wrong(text: str, name: str = "l.csv", **options) -> str:
        (tmp_path / name).write_text(text)
        return refused(tmp_path / name, **options)

    assert "no column 'image'; set data.image_column to one of its columns: a, b" in wrong(
        "a,b\n1,2\n"
    )
    assert "no column 'kind'" in wrong("image,label\n1,2\n", label_column="kind")
    assert "l.csv:3: no label" in wrong("image,label\n1.jpg,a\n2.jpg,\n")
    assert "l.csv:2: no image" in wrong("image,label\n,a\n")
    assert "l.csv:3: split 'trian'" in wrong("image,label,split\n1,a,train\n2,b,trian\n")
    assert "l.csv:3: no split" in wrong("image,label,split\n1,a,train\n2,b,\n")
    assert "l.csv:3: 1.jpg has label 'b' here and 'a' at" in wrong(
        "image,label\n1.jpg,a\n1.jpg,b\n"
    )
    assert "no rows" in wrong("image,label\n")
    assert "no rows" in wrong("")
    assert "only one class" in wrong("image,label\n1,a\n2,a\n")
    assert wrong("image,label,split\n1,a,test\n2,b,test\n").endswith(
        "no training images, only test; call the split to train on train"
    )
    assert "l.jsonl:2: Expecting value" in wrong(
        '{"image": "1", "label": "a"}\n{"image": \n', "l.jsonl"
    )
    assert "l.jsonl:1: expected an object" in wrong("[1, 2]\n", "l.jsonl")
    assert "l.jsonl:1: no label" in wrong('{"image": "1", "label": null}', "l.jsonl")
    (tmp_path / "l.csv").write_bytes("image,label\n1.jpg,caf\u00e9\n".encode("latin-1"))
    assert "not UTF-8" in refused(tmp_path / "l.csv")


# --- datasets --------------------------------------------------------------------------------


def dataset(count: int, **features):
    import datasets

    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    columns = {
        "image": [Image.fromarray(image) for image in pixels],
        "label": [number % 2 for number in range(count)],
    }
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])}
    return datasets.Dataset.from_dict(columns, features=datasets.Features({**kinds, **features}))


def test_a_saved_dataset_is_scanned_and_read(tmp_path):
    import datasets

    splits = datasets.DatasetDict({"train": dataset(20), "test": dataset(6)})
    splits.save_to_disk(str(tmp_path / "saved"))
    found = scan(DataSpec(str(tmp_path / "saved")))
    assert found.labels == ("dog", "cat")  # the source's own order
    assert found.counts == {
        "train": {"dog": 8, "cat": 8},
        "validation": {"dog": 2, "cat": 2},
        "test": {"dog": 3, "cat": 3},
    }
    assert content(found, 0)[:4] == b"\x89PNG"
    assert found.identity(0) != found.identity(1)


def test_an_image_that_a_dataset_has_the_path_of_changes_with_its_file(tmp_path):
    import datasets

    paths = [str(tmp_path / f"{number}.png") for number in range(8)]
    for path in paths:
        Path(path).write_bytes(b"x")
    made = datasets.Dataset.from_dict({"image": paths, "label": list("abababab")})
    made.save_to_disk(str(tmp_path / "saved"))
    found = scan(DataSpec(str(tmp_path / "saved")))
    before = [found.identity(row) for row in range(8)]
    Path(paths[3]).write_bytes(b"yy")
    Path(paths[5]).unlink()
    after = [scan(DataSpec(str(tmp_path / "saved"))).identity(row) for row in range(8)]
    assert [row for row in range(8) if before[row] != after[row]] == [3, 5]
    assert after[5].endswith("missing")


def test_images_of_a_table_may_lie_in_it_beside_it_or_nowhere(tmp_path):
    import datasets

    (tmp_path / "1.png").write_bytes(b"x")
    rows = [{"bytes": b"own", "path": "0.png"}, {"bytes": None, "path": str(tmp_path / "1.png")}]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    made = datasets.Dataset.from_dict({"image": [*rows, None]}, features=features)
    table = ImageTable({"train": made})
    before = [table.identity(f"train/{row}") for row in range(3)]
    (tmp_path / "1.png").write_bytes(b"yy")
    assert [row for row in range(3) if table.identity(f"train/{row}") != before[row]] == [1]
    assert [content(table, "train/0"), content(table, "train/1")] == [b"own", b"yy"]
    with pytest.raises(OSError, match="no image"):
        content(table, "train/2")


def test_a_single_dataset_or_parquet_with_other_names_will_do(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    renamed = dataset(20).rename_columns({"image": "img", "label": "kind"})
    renamed.save_to_disk(str(tmp_path / "single"))
    renamed.to_parquet(str(tmp_path / "p" / "data" / "train-00000.parquet"))
    renamed.to_parquet(str(tmp_path / "t.parquet"))
    for path in ("single", "p", "t.parquet"):
        found = scan(DataSpec(str(tmp_path / path)))
        assert found.counts["train"] == {"dog": 8, "cat": 8}, path
        assert content(found, 3)[:4] == b"\x89PNG"


def test_images_without_a_label_are_counted(tmp_path):
    import datasets

    label = datasets.ClassLabel(names=["dog", "cat"])
    hidden = dataset(4).map(lambda _: {"label": -1}).cast_column("label", label)
    splits = datasets.DatasetDict({"train": dataset(20), "test": hidden, "extra": dataset(2)})
    splits.save_to_disk(str(tmp_path / "saved"))
    found = scan(DataSpec(str(tmp_path / "saved")))
    assert list(found.counts) == ["train", "validation"]
    assert found.ignored == (
        "test/ (4 images without a label)",
        "extra/ (2 images of a split that is not used)",
    )


def test_mistakes_with_datasets_are_named(tmp_path):
    dataset(20).save_to_disk(str(tmp_path / "d"))
    assert "no column 'img'; set data.image_column" in refused(tmp_path / "d", image_column="img")
    assert "holds ClassLabel" in refused(tmp_path / "d", image_column="label")
    assert "neither a folder nor a data set on the Hub" in refused("some-one/no-such-data")


# --- lightness -------------------------------------------------------------------------------


def test_scanning_imports_no_torch_and_takes_no_time(flowers):
    code = (
        "import sys, time; from hf_transfer.recipe.specs import DataSpec; "
        "from hf_transfer.data.sources import scan; start = time.perf_counter(); "
        f"found = scan(DataSpec({str(flowers)!r}, train_per_class=200)); "
        "assert time.perf_counter() - start < 1; "
        "assert not {'torch', 'datasets', 'PIL'} & set(sys.modules); print(found.counts)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'train': {'daisy': 200, 'dandelion': 200" in done.stdout


# --- several labels and numbers --------------------------------------------------------------


def table(root: Path, text: str, name: str = "table.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def test_a_column_of_several_labels_becomes_places_and_an_empty_cell_none(tmp_path):
    path = table(tmp_path, "image,label,split\na.png,dog|cat,train\nb.png,,train\nc.png,cat,val\n")
    found = scan(DataSpec(str(path)), task="multi_label")
    assert found.labels == ("cat", "dog")
    assert found.targets == ((0, 1), (), (0,))
    assert found.counts == {"train": {"cat": 1, "dog": 1}, "validation": {"cat": 1, "dog": 0}}
    assert found.images == {"train": 2, "validation": 1}
    assert [found.shown(target) for target in found.targets] == ["cat|dog", "", "cat"]


def test_lists_in_json_lines_and_columns_of_flags_say_the_same(tmp_path):
    rows = [("a.png", ["x", "y"]), ("b.png", []), ("c.png", ["y"])]
    lines = "".join(json.dumps({"image": name, "tags": tags}) + "\n" for name, tags in rows)
    lists = scan(
        DataSpec(str(table(tmp_path, lines, "t.jsonl")), label_column="tags", validation=0),
        task="multi_label",
    )
    flags = table(tmp_path, "image,y,x,z\na.png,1,1,0\nb.png,0,0,0\nc.png,1,0,0\n")
    spec = DataSpec(str(flags), label_columns=("x", "y", "z"), validation=0)
    columns = scan(spec, task="multi_label")
    assert lists.targets == columns.targets == ((0, 1), (), (1,))
    assert lists.labels == ("x", "y")
    assert columns.labels == ("x", "y", "z")  # asked for, so kept even where no image has it


def test_numbers_have_the_names_of_their_columns_and_are_split_by_tenths(tmp_path):
    rows = "".join(f"{i:03d}.png,{i},{-i / 2}\n" for i in range(100))
    path = table(tmp_path, "image,x,y\n" + rows)
    found = scan(DataSpec(str(path), label_columns=("y", "x")), task="regression")
    assert found.labels == ("y", "x")
    assert found.targets[3] == (-1.5, 3.0)
    assert found.images == {"train": 80, "validation": 20}
    chosen = [found.targets[i][1] for i, split in enumerate(found.splits) if split == "validation"]
    assert [sum(10 * k <= value < 10 * k + 10 for value in chosen) for k in range(10)] == [2] * 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,age\na.png,1\nb.png,nan\n", "table.csv:3: age is 'nan'; a target is a finite"),
        ("image,age\na.png,inf\nb.png,2\n", "table.csv:2: age is 'inf'"),
        ("image,age\na.png,\n", "table.csv:2: age is ''"),
        ("image,years\na.png,3\n", "no column 'age'"),
    ],
)
def test_a_number_that_is_none_is_refused_with_its_row(tmp_path, text, words):
    with pytest.raises(DataError) as caught:
        scan(DataSpec(str(table(tmp_path, text)), label_column="age"), task="regression")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_class_folders_are_for_classification_only(tmp_path, task):
    with pytest.raises(DataError, match=f"is for task: classification; for task: {task} name a"):
        scan(DataSpec(str(classes(tmp_path, cat=3, dog=3))), task=task)


def test_datasets_give_lists_of_class_labels_texts_and_numbers(tmp_path):
    datasets = pytest.importorskip("datasets")
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "kinds": datasets.Sequence(datasets.ClassLabel(names=["dog", "cat", "fox"])),
            "words": datasets.Sequence(datasets.Value("string")),
            "box": datasets.Sequence(datasets.Value("float32")),
            "age": datasets.Value("float64"),
        }
    )
    rows = {
        "image": [picture] * 3,
        "kinds": [[1, 0], [], [1]],
        "words": [["b", "a"], [], ["b"]],
        "box": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        "age": [1.5, None, 3.0],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))

    def found(task, column):
        spec = DataSpec(str(tmp_path / "saved"), label_column=column, validation=0)
        return scan(spec, task=task)

    assert found("multi_label", "kinds").labels == ("dog", "cat")  # the source's order
    assert found("multi_label", "kinds").targets == ((1, 0), (), (1,))
    assert found("multi_label", "words").targets == ((0, 1), (), (1,))
    assert found("regression", "box").labels == ("box 0", "box 1")
    assert found("regression", "box").targets[2] == (5.0, 6.0)
    ages = found("regression", "age")
    assert ages.targets == ((1.5,), (3.0,))
    assert ages.ignored == ("train/ (1 image without a label)",)
