"""Tables: what people export is read, and what cannot be meant is refused with its line."""

import json
from pathlib import Path

import pytest

from hf_transfer.base.errors import DataError
from hf_transfer.data.sources import Scan, scan
from hf_transfer.recipe.specs import DataSpec


def written(root: Path, text: str, name: str = "l.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def found(path: Path, task: str = "classification", **options) -> Scan:
    return scan(DataSpec(str(path), validation=0.0, **options), task=task)


def refused(path: Path, task: str = "classification", **options) -> str:
    with pytest.raises(DataError) as caught:
        found(path, task, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pairs(scanned: Scan) -> dict[str, str]:
    told = map(scanned.shown, scanned.targets)
    return dict(zip(scanned.files, told, strict=True))


def test_blanks_around_names_rows_of_commas_and_trailing_ones_do_no_harm(tmp_path):
    text = ' Image , Label ,\n1.jpg, cat,\n,,\n\n"2.jpg" ,dog,,\n , ,\n'
    assert pairs(found(written(tmp_path, text))) == {"1.jpg": "cat", "2.jpg": "dog"}


def test_a_stray_comma_is_named_with_its_line(tmp_path):
    text = "image,label\n1.jpg,cat\nred, old.jpg,dog\n"
    assert "l.csv:3: 3 cells where the header has 2" in refused(written(tmp_path, text))


def test_a_column_that_is_there_twice_is_refused_where_it_is_used(tmp_path):
    message = "column 'label' is there twice"
    assert message in refused(written(tmp_path, "image,label,label\n1.jpg,cat,dog\n"))
    row = '{"image": "1.jpg", "label": "cat", "label": "dog"}\n'
    assert message in refused(written(tmp_path, row, "l.jsonl"))
    text = "image,label,x,x\n1.jpg,cat,1,2\n2.jpg,dog,1,2\n"  # x does no harm
    assert found(written(tmp_path, text)).labels == ("cat", "dog")


def test_a_missing_value_is_no_class(tmp_path):
    for text in ("nan", "NaN", "<NA>"):
        message = refused(written(tmp_path, f"image,label\n1.jpg,cat\n2.jpg,{text}\n"))
        assert f"l.csv:3: label is '{text}', which stands for a missing value" in message
    message = refused(written(tmp_path, '{"image": "1.jpg", "label": NaN}\n', "l.jsonl"))
    assert "l.jsonl:1: label is 'nan'" in message


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (0.5, "label is 0.5, and a class is a text or a whole number; to predict numbers, set"),
        (["cat", "dog"], "several labels of an image need task: multi_label"),
        ({"a": 1}, "label is {'a': 1}; a class is a text or a whole number"),
        ("  ", "no label"),
        (None, "no label"),
    ],
)
def test_what_is_no_class_is_named_as_what_it_is(tmp_path, label, says):
    row = json.dumps({"image": "1.jpg", "label": label})
    assert says in refused(written(tmp_path, row, "l.jsonl"))


def test_whole_numbers_are_classes_however_they_are_written(tmp_path):
    rows = [{"image": f"{n}.jpg", "label": label} for n, label in enumerate((1, 1.0, "2", 2.0))]
    text = "\n".join(map(json.dumps, rows))
    assert found(written(tmp_path, text, "l.jsonl")).labels == ("1", "2")


def test_paths_of_windows_are_paths(tmp_path):
    (tmp_path / r"odd\name.jpg").write_bytes(b"x")
    text = "image,label\ncats\\1.jpg,cat\n.\\dogs\\2.jpg,dog\nodd\\name.jpg,cat\n"
    files = found(written(tmp_path, text)).files
    assert files == ("cats/1.jpg", "dogs/2.jpg", r"odd\name.jpg")


def test_names_are_relative_to_the_data_wherever_they_lie(tmp_path):
    inside = f"image,label\n{tmp_path}/a/1.jpg,cat\nb/2.jpg,dog\n./b//3.jpg,dog\n"
    scanned = found(written(tmp_path, inside))
    assert (scanned.root, scanned.files) == (tmp_path, ("a/1.jpg", "b/2.jpg", "b/3.jpg"))
    outside = "image,label\n/data/photos/cat/1.jpg,cat\n/data/photos/dog/2.jpg,dog\n"
    scanned = found(written(tmp_path / "lists", outside))
    assert (scanned.root, scanned.files) == (Path("/data/photos"), ("cat/1.jpg", "dog/2.jpg"))


HOSTILE = {
    "a NUL in a name": ('{"image": "a\\u0000.jpg", "label": "x"}', "holds a NUL character"),
    "a surrogate in a name": ('{"image": "a\\ud800.jpg", "label": "x"}', "surrogates not allowed"),
    "a surrogate in a label": ('{"image": "a.jpg", "label": "\\udce9"}\n', "is not UTF-8"),
    "a huge number": ('{"image": "a.jpg", "label": ' + "9" * 5000 + "}", "l.jsonl:1"),
    "deep lists": ('{"image": "a.jpg", "label": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
    "deep objects": ('{"image": "a.jpg", "label": ' + '{"a":' * 900 + "1" + "}" * 901, "label is"),
    "an address": ('{"image": "https://example.com/1.jpg", "label": "x"}', "download the images"),
    "a list": ("[1, 2]", "expected an object"),
    "an infinite number": ('{"image": "a.jpg", "label": 1e999}', "label is inf"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_rows_are_one_line_with_file_and_line(tmp_path, what):
    text, says = HOSTILE[what]
    message = refused(written(tmp_path, text + "\n", "l.jsonl"))
    assert says in message
    assert len(message) < 500
    if what != "a surrogate in a label":
        assert "l.jsonl:1" in message


def test_nul_in_a_csv_is_one_line(tmp_path):
    (tmp_path / "l.csv").write_bytes(b"image,label\n1\0.jpg,cat\n2.jpg,dog\n")
    assert "l.csv:2" in refused(tmp_path / "l.csv")


def test_huge_numbers_and_deep_lists_are_no_targets(tmp_path):
    for text in (
        '{"image": "1.jpg", "label": 1%s}' % ("0" * 400),
        '{"image": "1", "label": [[1]]}',
    ):
        assert "l.jsonl:1" in refused(written(tmp_path, text, "l.jsonl"), "regression")


def test_metadata_of_datasets_image_folders_is_read(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        rows = [f"{n}.jpg,{('cat', 'dog')[n % 2]}" for n in range(count)]
        written(tmp_path / "a" / split, "\n".join(["file_name,label", *rows]), "metadata.csv")
        for number in range(count):
            (tmp_path / "a" / split / f"{number}.jpg").write_bytes(b"x")
    scanned = found(tmp_path / "a")
    assert scanned.counts == {"train": {"cat": 2, "dog": 2}, "test": {"cat": 1, "dog": 1}}
    assert scanned.root == tmp_path / "a"
    assert scanned.files[0] == "test/0.jpg"
    assert scanned.ignored == ("test/metadata.csv", "train/metadata.csv")
    rows = [json.dumps({"file_name": f"x/{n}.jpg", "label": str(n % 2)}) for n in range(4)]
    written(tmp_path / "b", "\n".join(rows), "metadata.jsonl")
    assert found(tmp_path / "b").files == ("x/0.jpg", "x/1.jpg", "x/2.jpg", "x/3.jpg")


def test_metadata_without_labels_leaves_folders_their_classes(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.jpg").write_bytes(b"x")
    written(tmp_path, "file_name,caption\ncat/1.jpg,a cat\n", "metadata.csv")
    assert found(tmp_path).labels == ("cat", "dog")


def test_a_user_that_is_not_there_is_one_line():
    assert "home directory" in refused(Path("~nosuchuser/flowers"))


def test_measurements_are_no_classes(tmp_path):
    rows = [f"{number}.jpg,{number * 0.37:.2f}" for number in range(8)]
    path = written(tmp_path, "\n".join(["image,label", *rows]))
    assert "8 different numbers in 8 rows; to predict numbers, set task: regr" in refused(path)
    few = [f"{number}.jpg,{number % 2 / 2}" for number in range(8)]
    assert found(written(tmp_path, "\n".join(["image,label", *few]))).labels == ("0", "0.5")


def test_a_decimal_comma_is_told_to_be_a_point(tmp_path):
    message = refused(written(tmp_path, "image;label\n1.jpg;1,5\n"), "regression")
    assert "label is '1,5'; a target is a finite number: write it with a point: 1.5" in message


@pytest.mark.parametrize(
    ("name", "separator"), [("l.csv", "|"), ("l.csv", "\t"), ("l.tsv", ","), ("l.tsv", ";")]
)
def test_the_header_decides_on_the_separator(tmp_path, name, separator):
    text = "image,label\n1.jpg,cat\n2.jpg,dog\n".replace(",", separator)
    assert pairs(found(written(tmp_path, text, name))) == {"1.jpg": "cat", "2.jpg": "dog"}


def test_a_table_without_a_header_is_told_what_it_lacks(tmp_path):
    message = refused(written(tmp_path, "1.jpg,cat\n2.jpg,dog\n"))
    assert "the first line must name the columns, as in image,label; it is 1.jpg,cat" in message


def test_a_quote_that_does_not_end_is_named_where_it_begins(tmp_path):
    message = refused(written(tmp_path, 'image,label\n1.jpg,cat\n"2.jpg,dog\n3.jpg,cat\n'))
    assert "l.csv:3: no label" in message


def test_a_row_of_json_that_lacks_a_column_is_named_wherever_it_is(tmp_path):
    rows = [{"image": "1.jpg"}, {"image": "2.jpg", "label": "cat"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert "l.jsonl:1: no label" in refused(written(tmp_path, text, "l.jsonl"))


def test_a_table_in_which_no_image_has_a_label_is_told_so(tmp_path):
    path = written(tmp_path, "image,label\n1.jpg,\n2.jpg,\n")
    assert refused(path, "multi_label") == f"{path}: no image has a label"
