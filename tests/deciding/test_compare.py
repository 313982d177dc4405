"""A comparison is fair: same images, same starts, tested on images that chose nothing."""

import dataclasses
import importlib
import json
import re
from contextlib import suppress

import numpy as np
import pytest
from drawn import photos
from tiny_folders import timm_folder

from hf_transfer.base.errors import UserError
from hf_transfer.cli import main
from hf_transfer.deciding.compare import Comparison, Row, compare, rows_of
from hf_transfer.deciding.compare_page import comparison_page
from hf_transfer.deciding.compare_text import conclusion, format_comparison
from hf_transfer.deciding.trials import Trial
from hf_transfer.results.ways_chart import LINE, Named, Spot, ways_chart

compare_module = importlib.import_module("hf_transfer.deciding.compare")
SMALL = ("pretrained=false", "data.image_size=32", "phases.*.epochs=1")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    said = []
    found = compare(
        ["feature_extraction", "lp_ft"],
        data=photos(folder / "photos", count=10, size=32),
        backbone="timm/test_resnet",
        per_class=(2, 4),
        seeds=[0, 5],
        overrides=SMALL,
        out=folder / "out",
        on_progress=said.append,
    )
    return found, said, folder / "out"


def test_every_way_is_tried_at_each_number_of_images_with_each_seed(compared):
    found, said, out = compared
    assert [(row.per_class, row.way) for row in found.rows] == [
        (2, "feature_extraction"), (2, "lp_ft"), (4, "feature_extraction"), (4, "lp_ft"),
    ]  # fmt: skip
    assert all(len(row.values) == 2 for row in found.rows)
    assert len(said) == 8
    assert found.seeds == (0, 5)
    assert ["seed 5, " in line for line in said] == [False, False, False, False, *[True] * 4]
    assert found.test_images == 4  # a fifth of each class of ten
    written = json.loads((out / "comparison.json").read_text())
    assert [row["mean"] for row in written["rows"]] == [row.mean for row in found.rows]
    assert (out / "comparison.txt").read_text().rstrip() == format_comparison(found)


def test_the_head_alone_trains_fewer_parameters_than_everything(compared):
    of = {row.way: row.parameters for row in compared[0].rows}
    assert of["feature_extraction"] < of["lp_ft"]


def test_auto_is_compared_on_the_same_images(tmp_path):
    backbone = timm_folder(tmp_path / "backbone", "test_resnet")
    found = compare(
        ["exact_head", "auto"],
        data=photos(tmp_path / "photos", count=10, size=32),
        backbone=str(backbone),
        per_class=(4,),
        seeds=1,
        epochs=1,
        minutes=0.5,
        overrides=["data.image_size=32"],
    )
    assert [row.way for row in found.rows] == ["exact_head", "auto"]
    assert found.rows[0].parameters < found.rows[1].parameters  # it trains more than the head


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipes": ["lp_ft", "regression"]}, "different tasks cannot be compared"),
        ({"per_class": [1]}, "per_class: 1 is too few"),
        ({"recipes": ["regression"], "per_class": [4]}, "per_class is for one class an image"),
        ({"recipes": ["quickstart"], "backbone": None}, "has a source task"),
        ({"seeds": 0}, "seeds must be a number from 1 to 1,000, or a list of different seeds"),
        ({"seeds": [3, 3]}, "seeds must be"),
        ({"seeds": "3"}, "seeds is of type str; it takes int or"),
        ({"minutes": -1}, "minutes must be above 0, not -1"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        compare(
            **{"recipes": ["lp_ft"], "data": tmp_path, "backbone": "timm/test_resnet", **options}
        )


def recipe_file(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return str(folder / name)


HEAD = "phases: [{train: head, epochs: 1, lr: 1e-2}]\n"
MORE = HEAD.replace("]", ", {train: all, steps: 2, lr: 1e-4}]")


def test_recipes_that_would_not_share_their_images_are_refused(tmp_path):
    own = [recipe_file(tmp_path, "a.yaml", HEAD)]
    own += [recipe_file(tmp_path, "b.yaml", f"data: {{group: '^(.)'}}\n{HEAD}")]
    with pytest.raises(UserError, match=r"a has data.group None, and b \^\(\.\): their images"):
        compare(own, data=tmp_path, backbone="timm/test_resnet")


def test_a_recipe_that_fails_is_left_out_and_one_that_cannot_work_told_at_once(tmp_path):
    good = recipe_file(tmp_path, "good.yaml", HEAD)
    twin = recipe_file(tmp_path / "more", "good.yaml", HEAD)
    wild = HEAD.replace("1e-2", "9000").replace("epochs: 1", "epochs: 9")
    wild = recipe_file(tmp_path, "wild.yaml", wild)
    said = []
    own = {
        "data": photos(tmp_path / "photos", count=10, size=32),
        "backbone": "timm/test_resnet",
        "overrides": ["pretrained=false", "data.image_size=32"],
        "seeds": 1,
        "on_progress": said.append,
    }
    found = compare([good, wild, good], **own)
    assert [row.way for row in found.rows] == ["good"]
    (note,) = found.notes
    assert note.startswith("wild is left out; with seed 0 it failed: phase")
    assert f"note: {note}" in said
    assert note in format_comparison(found)
    with pytest.raises(UserError, match="^phase"):
        compare([wild], **own)
    odd = recipe_file(tmp_path, "odd.yaml", HEAD.replace("head", "nothing, cold_head: true"))
    said.clear()
    with pytest.raises(UserError, match="^recipe odd: "):
        compare([good, odd], **own)
    assert said == []
    assert [row.way for row in compare([good, twin], **own).rows] == [good, twin]


def trial(way, right, seed=0, seconds=1.0):
    right = np.asarray(right, bool)
    return Trial(way, 5, seed, float(right.mean()), right, seconds, 10)


def test_a_way_is_behind_by_a_paired_interval_that_narrows_with_the_images():
    better, worse = [1] * 9 + [0], [1] * 7 + [0] * 3
    few = rows_of([trial("a", better), trial("b", worse)], ["a", "b"])
    many = rows_of([trial("a", better * 50), trial("b", worse * 50)], ["a", "b"])
    assert few[0].behind is None
    assert few[1].behind[0] == pytest.approx(0.2)
    wide, narrow = (rows[1].behind[2] - rows[1].behind[1] for rows in (few, many))
    assert narrow < wide / 5
    assert many[1].behind[1] > 0


def test_answers_that_are_the_same_leave_nothing_between_the_ways():
    rows = rows_of([trial("a", [1, 0, 1]), trial("b", [1, 0, 1], seconds=0.5)], ["a", "b"])
    assert rows[1].behind == (0.0, 0.0, 0.0)
    said = "a and b have the same mean, and it is the best. Of these, b takes the least time."
    assert conclusion(list(rows)) == said
    found = Comparison("accuracy", ("x", "y"), (0,), 3, rows, 1.0)
    assert "+0.000 to the best (+0.000..+0.000)" in format_comparison(found)


def test_what_an_earlier_way_froze_is_no_reason_for_a_warning(tmp_path, caplog):
    compare(
        [recipe_file(tmp_path, "a.yaml", HEAD), recipe_file(tmp_path, "b.yaml", MORE)],
        data=photos(tmp_path / "photos", count=10, size=32),
        backbone="timm/test_resnet",
        overrides=["pretrained=false", "data.image_size=32"],
        seeds=1,
    )
    assert "do not require gradients" not in caplog.text


def test_the_conclusion_names_the_cheapest_of_those_that_cannot_be_told_apart():
    best = Row("lp_ft", 5, (0.9,), 60.0, 100)
    near = dataclasses.replace(best, way="exact_head", seconds=2.0, behind=(0.01, -0.02, 0.03))
    near = dataclasses.replace(near, values=(0.89,))
    far = dataclasses.replace(best, way="scratch", values=(0.5,), behind=(0.4, 0.3, 0.5))
    assert conclusion([best, near, far]) == (
        "lp_ft is best; these images cannot tell it from exact_head. Of these, exact_head takes "
        "the least time."
    )
    assert conclusion([best, far]) == (
        "lp_ft is best, and by more than chance among these test images explains."
    )


def test_images_of_a_group_widen_the_interval_as_one_image():
    right = np.repeat([1, 1, 1, 0, 1, 0, 1, 1], 10)
    wrong = np.repeat([1, 0, 1, 0, 0, 0, 1, 1], 10)
    alone = rows_of([trial("a", right), trial("b", wrong)], ["a", "b"])[1].behind
    groups = np.repeat(np.arange(8), 10)
    both = [
        dataclasses.replace(one, groups=groups) for one in (trial("a", right), trial("b", wrong))
    ]
    kept = rows_of(both, ["a", "b"])[1].behind
    assert kept[0] == alone[0]
    assert kept[2] - kept[1] > 2 * (alone[2] - alone[1])


def test_what_has_no_paired_test_is_not_said_to_be_more_than_chance(compared):
    best = Row("full", None, (0.2,), 60.0, 100)
    other = dataclasses.replace(best, way="regression", values=(0.1,))
    assert conclusion([best, other]) == (
        "full is best on average; how much of that is chance was not tested."
    )
    found = dataclasses.replace(compared[0], metric="r2", rows=(best, other))
    assert format_comparison(found).startswith("R² on 4 test images")
    page = comparison_page(found)
    assert "R² against time" in page
    assert "2 targets" in page
    assert "Behind the best" not in page
    assert "paired bootstrap" not in page
    assert "paired bootstrap" in comparison_page(compared[0])


def test_one_way_alone_is_not_called_best():
    assert conclusion([Row("lp_ft", 5, (0.9,), 60.0, 100)]) == "Only lp_ft was measured."


def test_more_images_than_there_are_are_refused_and_fewer_of_some_classes_told(tmp_path, compared):
    folder = photos(tmp_path / "photos", count=10, size=32)
    own = {"data": folder, "backbone": "timm/test_resnet", "overrides": SMALL, "seeds": 1}
    with pytest.raises(UserError, match="no class has 9 images but for those that test; ask for 8"):
        compare(["feature_extraction"], per_class=[4, 9], **own)
    for file in sorted(folder.glob("*/*"))[:5]:
        file.unlink()
    found = compare(["feature_extraction"], per_class=[2, 6], **own)
    first = sorted(path.name for path in folder.iterdir())[0]
    note = f"with 6 per class, all labelled images of {first} (4) are used"
    assert found.notes == (note,)
    assert note in format_comparison(found)
    assert note in comparison_page(found)
    assert compared[0].notes == ()


def test_the_plain_options_of_train_are_those_of_every_recipe(tmp_path, monkeypatch, capsys):
    seen = {}

    def tried(ways, *_):
        seen.update({way.name: way for way in ways})
        raise UserError("far enough")

    monkeypatch.setattr(compare_module, "trials_of", tried)
    folder = photos(tmp_path / "photos", count=10, size=32)
    recipes = ["exact_head", "lp_ft", "auto"]
    options = ["--image-size", "40", "--epochs", "3", "--group", r"^(\d)", "--minutes", "2"]
    assert main(["compare", *recipes, "--data", str(folder), *options]) == 2
    assert "far enough" in capsys.readouterr().err
    assert {way.recipe.data.image_size for way in seen.values()} == {40}
    assert {way.recipe.data.group for way in seen.values()} == {r"^(\d)"}
    assert [spec.epochs for spec in seen["lp_ft"].recipe.phases] == [None, 3]  # one is solved for
    assert (seen["auto"].epochs, seen["auto"].minutes) == (3, 2)
    assert seen["exact_head"].recipe.phases[0].solve


def test_epochs_without_a_recipe_that_has_any_are_refused(tmp_path):
    with pytest.raises(UserError, match="epochs: exact_head is solved for.*leave it out"):
        compare(["exact_head"], data=photos(tmp_path / "photos", count=10, size=32), epochs=2)


def test_what_auto_does_not_use_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_module, "trials_of", lambda *_: iter(()))
    told = []
    with suppress(Exception):
        compare(
            ["full", "auto"],
            data=photos(tmp_path / "photos", count=10, size=32),
            overrides=["phases.*.epochs=1"],
            on_progress=told.append,
        )
    assert told == ["note: auto does not use phases, which is set for the other recipes alone"]


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        (("--preset", "fast"), "--backbone, --image-size and --minutes"),
        (("--scratch",), "name the recipe scratch"),
        (("--no-refit",), "auto"),
        (("--seed", "3"), "--seeds 7,"),
    ],
)
def test_options_of_train_that_a_comparison_has_not_say_what_to_do(option, instead, capsys):
    with pytest.raises(SystemExit):
        main(["compare", "exact_head", "--data", "x", *option])
    said = capsys.readouterr().err.strip()
    assert option[0] in said
    assert instead in said
    assert "\n" not in said


def test_the_command_compares_and_writes_what_it_prints(tmp_path, capsys):
    folder = photos(tmp_path / "photos", count=10, size=32)
    words = ["compare", "feature_extraction", "lp_ft", "--data", str(folder), "--seeds", "7,"]
    words += ["--backbone", "timm/test_resnet", "--per-class", "2", "--out", str(tmp_path / "out")]
    assert main([*words, *(word for key in SMALL for word in ("--set", key))]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "comparison.txt").read_text() in printed
    assert "2 labelled images per class" in printed
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["seeds"] == [7]
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "lp_ft", "--data", str(folder), "--per-class", "2,x"])
    assert "--per-class: x is not a whole number" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "lp_ft", "--data", str(folder), "--seeds", "0,,2"])
    assert "--seeds: 0,,2 is not a list of seeds such as 0,2,5" in capsys.readouterr().err


def test_the_page_shows_every_way_in_both_pictures_and_a_table_for_each_number(compared):
    found, _, out = compared
    page = (out / "comparison.html").read_text()
    assert page.count("<svg") == 2
    assert page.count("</table>") == 2
    for row in found.rows:
        note = f"{row.way}, {row.per_class} images per class: {row.mean:.3f}"
        assert note in page  # the tooltip of its point
    assert conclusion([row for row in found.rows if row.per_class == 4]) in page
    assert "<script" not in page
    assert "http" not in page


def test_names_of_ways_that_are_equally_good_do_not_overlap():
    ways = [Named(f"way {i}", (Spot(1.0 + i, 0.5, 0.4, 0.6, ""),)) for i in range(6)]
    heights = [
        float(y) for y in re.findall(r'y="([\d.]+)" font-size="11"', ways_chart("t", "s", ways))
    ]
    assert len(heights) == 6
    assert np.diff(sorted(heights)).min() > LINE - 0.2


def test_a_single_point_without_a_range_is_drawn():
    chart = ways_chart("t", "s", [Named("one", (Spot(0.1, 0.5, 0.5, 0.5, "note"),))])
    assert "nan" not in chart
    assert "<title>note</title>" in chart
