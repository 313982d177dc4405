"""The quickstart shows where transfer pays: what it says follows from what it measured."""

import dataclasses
import json
from pathlib import Path

import pytest

from hf_transfer.quickstart import (
    QuickstartResult,
    Row,
    conclusion,
    format_quickstart,
    run_quickstart,
)
from hf_transfer.recipe import Recipe, UserError, load_recipe, parse_recipe
from hf_transfer.report import RunReport

PAYS = Row(2, scratch=(0.60, 0.70), frozen=(0.80, 0.84), tuned=(0.81, 0.85))
MEETS = Row(10, scratch=(0.93, 0.95), frozen=(0.90, 0.92), tuned=(0.94, 0.96))
COSTS = Row(50, scratch=(0.98, 0.99), frozen=(0.93, 0.94), tuned=(0.96, 0.97))


def _result(*rows: Row) -> QuickstartResult:
    return QuickstartResult(
        rows=rows,
        seeds=tuple(range(len(rows[0].tuned))),
        test_images=1000,
        source_images=12580,
        source_accuracy=0.87,
        seconds=63.4,
        out=Path("runs/quickstart"),
    )


def test_each_verdict_is_given_where_its_ranges_say_so() -> None:
    said = conclusion([PAYS, MEETS, COSTS])
    assert "Transfer pays at 2 per class" in said
    assert "(+0.180)" in said
    assert "at 10 the two meet within the spread (+0.010)" in said
    assert "at 50 training from scratch is ahead (-0.020)" in said
    assert "Frozen features fall behind fine-tuning at 10 and 50." in said


def test_transfer_is_not_said_to_pay_where_ranges_touch() -> None:
    touching = Row(5, scratch=(0.8, 0.9), frozen=(0.9, 0.92), tuned=(0.9, 0.95))
    said = conclusion([touching])
    assert "pays" not in said
    assert said.startswith("At 5 the two meet within the spread (+0.075).")
    assert "Frozen features keep up with fine-tuning everywhere." in said


def test_one_seed_is_said_to_show_no_spread() -> None:
    assert "One seed shows no spread" in conclusion([Row(2, (0.6,), (0.8,), (0.8,))])
    assert "One seed" not in conclusion([PAYS])


def test_the_table_has_a_row_for_each_number_of_images_and_three_ways() -> None:
    lines = format_quickstart(_result(PAYS, MEETS, COSTS)).splitlines()
    head = next(i for i, line in enumerate(lines) if "from scratch" in line)
    assert lines[head].split("  ")[0] == "images per class"
    rows = [line.split() for line in lines[head + 1 : head + 4]]
    assert [row[0] for row in rows] == ["2", "10", "50"]
    assert rows[0][1:] == ["0.650", "(0.600..0.700)", "0.820", "(0.800..0.840)", "0.830",
                           "(0.810..0.850)"]  # fmt: skip
    assert all(len(line) <= 110 for line in lines[head:])


def test_a_result_is_plain_json() -> None:
    values = json.loads(json.dumps(_result(PAYS, MEETS).to_dict()))
    assert values["rows"][0]["scratch"] == [0.6, 0.7]
    assert values["conclusion"] == conclusion([PAYS, MEETS])


def test_a_recipe_without_letters_and_one_with_data_are_refused() -> None:
    plain = parse_recipe("phases: [{train: head, epochs: 1}]", "mine.yaml")
    with pytest.raises(UserError, match=r"needs source\.letters"):
        run_quickstart(plain, Path("nowhere"))
    recipe = load_recipe("quickstart")
    data = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, path="flowers"))
    with pytest.raises(UserError, match=r"takes no data; for flowers choose"):
        run_quickstart(data, Path("nowhere"))


def test_what_cannot_be_compared_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = _reduced()
    many = dataclasses.replace(recipe.compare, per_class=(2, 80))
    with pytest.raises(UserError, match="80 is too many"):
        run_quickstart(dataclasses.replace(recipe, compare=many), out)
    with pytest.raises(UserError, match="a phase of the head alone"):
        run_quickstart(dataclasses.replace(recipe, phases=recipe.phases[:1]), out)
    assert not out.exists()


@pytest.mark.slow
def test_a_reduced_quickstart_runs_and_its_model_reads_its_examples(tmp_path: Path) -> None:
    out, heard = tmp_path / "run", []
    result = run_quickstart(_reduced(), out, heard.append)
    assert [row.per_class for row in result.rows] == [1, 2]
    assert all(len(row.tuned) == len(row.scratch) == len(row.frozen) == 1 for row in result.rows)
    assert len(heard) == 3
    assert json.loads((out / "comparison.json").read_text()) == json.loads(
        json.dumps(result.to_dict())
    )
    report = RunReport.load(out)
    assert report.labels == tuple("0123456789")
    assert report.metrics["test"]["n"] == 1000
    assert report.metrics["test"]["accuracy"] == result.rows[-1].tuned[0]
    assert (out / "letters.png").is_file()
    from hf_transfer.predict import predict

    examples = sorted((out / "examples").glob("*.png"))
    found = predict(out, examples, top=1)
    assert len(found) == 20
    assert all(one.error is None and one.labels[0][0] in report.labels for one in found)


@pytest.mark.slow
def test_two_quickstarts_of_one_seed_are_equal(tmp_path: Path) -> None:
    rows = [run_quickstart(_reduced(), tmp_path / name).rows for name in ("one", "other")]
    assert rows[0] == rows[1]


def _reduced() -> Recipe:
    return load_recipe(
        "quickstart",
        [
            "source.letters.images=370",
            "source.letters.fonts=3",
            "source.phases.*.epochs=1",
            "phases.*.steps=3",
            "compare.per_class=[1, 2]",
            "compare.seeds=1",
        ],
    )
