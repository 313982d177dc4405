"""The quickstart compares the three ways, writes a run, and is the same for the same seed."""

import dataclasses
import gc
import json
from pathlib import Path

import pytest

from hf_transfer.base.errors import UserError
from hf_transfer.deciding.quickstart import run_quickstart
from hf_transfer.deciding.quickstart_text import QuickstartResult
from hf_transfer.recipe.load import load_recipe, parse_recipe
from hf_transfer.recipe.specs import Recipe
from hf_transfer.results.report import RunReport


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data.path=flowers"], r"takes no data; for flowers choose a recipe such as lp_ft"),
        (["seeds=2", "loss=balanced"], r"does not use loss, seeds; leave them out"),
    ],
)
def test_what_a_comparison_would_not_use_is_refused(changes: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        run_quickstart(load_recipe("quickstart", changes), Path("nowhere"))
    assert "\n" not in str(caught.value)


def test_a_comparison_without_letters_is_refused() -> None:
    plain = parse_recipe("backbone: timm/x\nphases: [{train: head, epochs: 1}]", "mine.yaml")
    with pytest.raises(UserError, match=r"needs source\.letters"):
        run_quickstart(plain, Path("nowhere"))


def test_what_cannot_be_compared_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = _reduced()
    many = dataclasses.replace(recipe.compare, per_class=(2, 120))
    with pytest.raises(UserError, match="120 is too many"):
        run_quickstart(dataclasses.replace(recipe, compare=many), out)
    with pytest.raises(UserError, match="a phase of the head alone"):
        run_quickstart(dataclasses.replace(recipe, phases=recipe.phases[:1]), out)
    assert not out.exists()


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuickstartResult, list[str]]:
    """A quickstart of one seed and a few steps, and what it said on its way."""
    heard: list[str] = []
    out = tmp_path_factory.mktemp("quickstart") / "run"
    return run_quickstart(_reduced(), out, heard.append), heard


@pytest.mark.slow
def test_a_reduced_quickstart_runs_and_its_model_reads_its_examples(
    reduced: tuple[QuickstartResult, list[str]],
) -> None:
    result, heard = reduced
    out = result.out
    assert [row.per_class for row in result.rows] == [1, 2]
    assert all(len(row.tuned) == len(row.scratch) == len(row.frozen) == 1 for row in result.rows)
    assert len(heard) == 3
    assert json.loads((out / "comparison.json").read_text()) == json.loads(
        json.dumps(result.to_dict())
    )
    report = RunReport.load(out)
    assert report.labels == tuple("0123456789")
    assert report.metrics["test"]["n"] == 700
    assert report.metrics["test"]["accuracy"] == result.rows[-1].tuned[0]
    assert (out / "letters.png").is_file()
    from hf_transfer.serving.predict import predict

    examples = sorted((out / "examples").glob("*.png"))
    found = predict(out, examples, top=1)
    assert len(found) == 20
    assert all(one.error is None and one.labels[0][0] in report.labels for one in found)


@pytest.mark.slow
def test_two_quickstarts_of_one_seed_are_equal(
    reduced: tuple[QuickstartResult, list[str]], tmp_path: Path
) -> None:
    frozen = gc.get_freeze_count()
    again = run_quickstart(_reduced(), tmp_path / "again")
    assert again.rows == reduced[0].rows
    assert again.source_accuracy == reduced[0].source_accuracy
    assert gc.get_freeze_count() >= frozen > 0  # what the process kept out of its collections


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
