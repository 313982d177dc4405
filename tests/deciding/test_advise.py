"""Advice on drawn images: it trains nothing, reads a few passes, and writes a recipe that runs."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from drawn import blobs, shapes
from PIL import Image
from tiny_folders import stir

import hf_transfer
from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import UserError
from hf_transfer.data.sources import list_source
from hf_transfer.deciding import auto
from hf_transfer.deciding import looks as module
from hf_transfer.deciding.advise import Advice, advise, recipe_of, seconds_of
from hf_transfer.deciding.advise_page import _table
from hf_transfer.deciding.advise_text import format_advice, nearness
from hf_transfer.deciding.boundaries import boundary_features
from hf_transfer.deciding.depth import Choice
from hf_transfer.deciding.evidence import evidence_of
from hf_transfer.deciding.shift import Distance
from hf_transfer.deciding.truth import truth_of
from hf_transfer.plans import plan
from hf_transfer.recipe.load import asked

SIZE = ("data.image_size=32",)


def draw(folder, per_class=14, seed=0):
    """Write a folder of three classes that differ in colour, under noise."""
    rng = np.random.default_rng(seed)
    for place, name in enumerate(("blue", "green", "red")):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 200, (48, 64, 3))
            pixels[..., 2 - place] += 55
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("advise") / "colours")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Return folders of two small backbones, one with BatchNorm and one without."""
    found = []
    for name in ("test_resnet", "test_vit"):
        folder = tmp_path_factory.mktemp("backbones") / name
        save_model(stir(load_backbone(f"timm/{name}", ("a", "b"), pretrained=False)), folder)
        found.append(str(folder))
    return found


@pytest.fixture(scope="module")
def advice(data, backbones, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "advice"
    return advise(data, backbone=backbones, overrides=SIZE, out=out)


def test_in_the_page_how_sure_a_number_is_stands_below_it():
    table = _table(
        [["from", ">probe", "95% interval", ">gain"], ["head", "48%", "46% to 52%", "1"]]
    )
    heads = [("from", False, ""), ("probe", True, "95% interval"), ("gain", True, "")]
    assert table == {"heads": heads, "rows": [[("head", ""), ("48%", "46% to 52%"), ("1", "")]]}


def test_the_recipe_it_writes_is_one_that_plan_accepts(advice):
    (found,) = plan(advice.out / "recipe.yaml")
    assert found.recipe == hf_transfer.load_recipe(advice.out / "recipe.yaml")
    assert found.recipe.phases == advice.recipe.phases
    assert found.recipe.phases[0].solve == "lbfgs"


def test_it_looks_at_the_images_two_and_a_half_times_at_most(data, backbones, monkeypatch):
    seen = []
    original = module.input_of
    for where in ("boundaries", "shift", "looks"):
        monkeypatch.setattr(
            f"hf_transfer.deciding.{where}.input_of",
            lambda model, images, rows: (seen.append(len(rows)), original(model, images, rows))[1],
        )
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(data.parent / "fresh"))
    found = advise(data, backbone=backbones[0], overrides=SIZE)
    assert found.best.evidence.passes <= 2.5
    assert sum(seen) <= 2.5 * found.images + 2
    assert found.images == found.of == 42


def test_it_pools_what_is_labelled_and_splits_nothing_off(tmp_path, backbones):
    """So a limit on what trains holds, and no copy is left out for splits that nobody uses."""
    folder = draw(tmp_path / "colours", per_class=12)
    for i in range(12):  # each image twice
        shutil.copy(folder / "red" / f"{i:03}.png", folder / "red" / f"copy{i:03}.png")
    every = advise(folder, backbone=backbones[0], overrides=SIZE)
    assert every.of == 48
    assert not [found for found in every.findings if "split" in str(found)]
    few = advise(folder, backbone=backbones[0], overrides=(*SIZE, "data.train_per_class=11"))
    assert few.of == 33


def test_backbones_are_ranked_on_the_same_images(advice, backbones):
    assert {one.id for one in advice.backbones} == set(backbones)
    first, second = advice.backbones
    assert first.expected >= second.expected
    assert first.behind is None
    assert second.behind is not None


def test_layers_that_stay_frozen_are_not_said_to_move(advice):
    norms = {"stem": 9.0, "middle": 1.0, "top": 1.0}
    far = {"distance": Distance(0.2, 0.2, 0.2), "nearness": "far", "gradients": norms}
    evidence = dataclasses.replace(advice.best.evidence, **far)
    for depth in (evidence.depths[0], evidence.depths[-1]):
        choice = Choice(depth, "", "sure")
        said = nearness(dataclasses.replace(advice.best, evidence=evidence, choice=choice))
        assert ("they should move" in said) == (depth.stages > 0)


def test_what_to_expect_lies_between_the_head_alone_and_all_that_would_train(advice):
    for one in advice.backbones:
        low, high = one.expected_interval
        ends = sorted((one.evidence.depths[0].value, one.choice.depth.value))
        assert low <= ends[0] <= one.expected <= ends[1] <= high


def test_networks_without_batch_normalisation_say_so(advice):
    (vit,) = [one for one in advice.backbones if "test_vit" in one.id]
    assert vit.evidence.distance is None
    assert vit.evidence.nearness in ("near", "far")
    assert not [c for c in vit.evidence.changes if "statistics" in c.what]


def test_the_page_holds_the_picture_and_needs_nothing_else(advice):
    page = (advice.out / "advice.html").read_text()
    assert "<svg" in page
    assert "accuracy of probes against depth" in page
    for word in ("<script", "http://", "https://", str(advice.out.parent.parent)):
        assert word not in page


def test_the_facts_are_plain_json(advice):
    plain = json.loads((advice.out / "advice.json").read_text())
    assert plain["counts"] == {"blue": 14, "green": 14, "red": 14}
    assert plain["backbones"][0]["choice"]["why"] == advice.best.choice.why


def test_the_text_answers_first_and_says_what_to_expect(advice):
    text = format_advice(advice, 100)
    assert text.splitlines()[0].startswith(("Solve for the head", "Keep the whole backbone"))
    assert "on new images" in text
    assert "nothing was trained" in text
    assert max(map(len, text.splitlines())) <= 160


def test_under_ten_images_of_a_class_it_chooses_nothing(tmp_path, backbones):
    found = advise(draw(tmp_path / "few", 5), backbone=backbones[0], overrides=SIZE)
    assert found.best.choice.depth.train == ("head",)
    assert "too few images to choose by" in found.best.choice.why
    assert "was not chosen by these images" in format_advice(found)
    assert "have 10 images of each class at least" in format_advice(found)


def test_groups_of_images_stay_together_and_are_counted(tmp_path, backbones):
    folder = draw(tmp_path / "patients")
    for path in sorted(folder.rglob("*.png")):
        path.rename(path.with_name(f"{path.parent.name}{int(path.stem) // 2}_{path.stem}.png"))
    found = advise(folder, backbone=backbones[0], overrides=[*SIZE, r"data.group='^(\w+)_'"])
    assert found.groups == 21
    assert "of 21 groups" in format_advice(found)


def test_a_budget_limits_the_images_and_says_so(data, backbones, monkeypatch):
    monkeypatch.setattr(module, "_seconds_an_image", lambda model, images: 1.0)
    found = advise(data, backbone=backbones[0], overrides=SIZE, budget="2m")
    assert found.images == 28
    assert found.notes == ("the budget allows 28 of 42 images: estimates are wider",)
    short = advise(data, backbone=backbones[0], overrides=SIZE, budget="0.01s")
    assert short.notes[-1].endswith("longer than the 0.0 s allowed")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("90s", 90), ("1h", 3600), ("5", 300), (7.5, 7.5), (None, None)],
)
def test_budgets_are_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["soon", "-1m", "0", "", "m", float("inf"), "nan"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UserError, match="is no time"):
        seconds_of(text)


@dataclass
class Table:
    """A table of drawn images, what is asked of it, and the advice."""

    path: Path
    overrides: tuple[str, ...]
    advice: Advice
    metric: str  # its name, and its title in a sentence
    words: str


@pytest.fixture(scope="module", params=["multi_label", "regression"])
def table(request, tmp_path_factory, backbones):
    folder = tmp_path_factory.mktemp(request.param)
    several = request.param == "multi_label"
    path = shapes(folder, 60) if several else blobs(folder, 60)
    column = "data.label_column=label" if several else "data.label_columns=[x,y]"
    overrides = (*SIZE, f"task={request.param}", column)
    found = advise(path, backbone=backbones, overrides=overrides, out=folder / "advice")
    metric = ("map", "mean average precision") if several else ("r2", "R²")
    return Table(path, overrides, found, *metric)


def test_several_labels_and_numbers_are_judged_by_their_own_metric(table):
    text, advice = format_advice(table.advice), table.advice
    assert f"{table.words} of about {advice.best.expected:.2f} on new images" in text
    assert f"scores {advice.baseline:.2f}" in text
    assert f"expect: {table.words} " in (advice.out / "recipe.yaml").read_text()
    page = (advice.out / "advice.html").read_text()
    assert f"{table.words[0].upper()}{table.words[1:]} against depth" in page
    assert f"{table.words} of probes against depth" in page
    for nothing in ("accuracy", "class", "wrong label", "%)", "% on new"):
        assert nothing not in text
    plain = json.loads((advice.out / "advice.json").read_text())
    assert plain["metric"] == table.metric
    assert plain["baseline"] == advice.baseline


def test_advice_on_several_labels_and_numbers_is_what_the_features_tell(table, backbones):
    """The score of the head is that of ridge regression, out of fold, by scikit-learn."""
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import average_precision_score, r2_score
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (one,) = [one for one in table.advice.backbones if one.id == backbones[0]]
    recipe = asked("lp_ft", table.path, one.id, 0, table.overrides)
    listed = list_source(recipe.data, recipe.task)
    model = load_backbone(one.id, listed.labels, image_size=32)
    images = auto.labelled(recipe, listed, model).train
    features = boundary_features(model, images).head
    ridge = make_pipeline(StandardScaler(), RidgeCV(10.0 ** np.arange(-1, 5)))
    answers = cross_val_predict(ridge, features, images.labels, cv=5)
    score = average_precision_score if table.metric == "map" else r2_score
    head = one.evidence.depths[0].value
    assert score(images.labels, answers) == pytest.approx(head, abs=0.1)
    assert head > table.advice.baseline + 0.1


def test_the_recipe_for_several_labels_or_numbers_trains(table):
    assert table.advice.recipe.phases[0].solve == "lbfgs"
    where = table.advice.out
    changes = [*table.overrides[:1], "data.validation=0.3"]
    if len(table.advice.recipe.phases) > 1:  # it unfreezes something
        changes += ["phases.1.epochs=2", "phases.1.min_steps=null"]
    report = hf_transfer.train(where / "recipe.yaml", overrides=changes, out=where / "run")
    assert report.metrics[table.metric] > table.advice.baseline


def test_what_is_unfrozen_trains_as_the_recipe_of_the_task_does(table):
    deepest = Choice(table.advice.best.evidence.depths[-1], "", "sure")
    best = dataclasses.replace(table.advice.best, choice=deepest)
    name = "lp_ft" if table.metric == "map" else "regression"
    (expected,) = hf_transfer.load_recipe(name).phases[1:]
    wanted = asked("lp_ft", table.path, best.id, 0, table.overrides)
    head, found = recipe_of(wanted, best).phases
    assert head.solve == "lbfgs"
    assert found == dataclasses.replace(expected, train=("all",))


def test_groups_and_a_budget_work_for_several_labels_and_numbers(table, backbones, monkeypatch):
    monkeypatch.setattr(module, "_seconds_an_image", lambda model, images: 1.0)
    overrides = [*table.overrides, r"data.group='^(\d{3})'"]
    unlabelled = table.path.parent
    found = advise(
        table.path, backbone=backbones[0], overrides=overrides, budget="2m", unlabelled=unlabelled
    )
    assert found.images == 28
    assert found.groups == 6
    assert found.smallest == 30
    assert found.notes[0] == "the budget allows 28 of 60 images: estimates are wider"
    assert "too few beside 60 labelled ones" in found.notes[1]


def test_numbers_of_images_seen_whole_are_numbers_too(data, backbones, monkeypatch, tmp_path):
    """And what no feature tells is said to be so."""
    names = sorted(path.relative_to(data) for path in data.rglob("*.png"))
    noise = np.random.default_rng(0).normal(size=len(names))
    rows = [f"{data / name},{number}" for name, number in zip(names, noise, strict=True)]
    table = tmp_path / "numbers.csv"
    table.write_text("\n".join(["image,x", *rows]))
    seen = {}

    def told(model, images, groups=None, **more):
        seen.update(more)
        return evidence_of(model, images, groups, **more)

    monkeypatch.setattr(module, "evidence_of", told)
    overrides = (*SIZE, "task=regression", "data.label_columns=[x]")
    found = advise(table, backbone=backbones[0], overrides=overrides)
    rows, whole = seen["whole"]
    values = whole.scale.to_units(truth_of(whole))[:, 0]
    place = {str(data / name): number for name, number in zip(names, noise, strict=True)}
    assert values == pytest.approx([place[str(data / file)] for file in whole.files], abs=1e-5)
    assert len(rows) == len(whole)
    assert "0.00: looking at the images has not helped yet." in format_advice(found)


def test_too_few_images_with_numbers_choose_nothing(tmp_path, backbones):
    overrides = (*SIZE, "task=regression", "data.label_columns=[x]")
    found = advise(blobs(tmp_path, 15), backbone=backbones[0], overrides=overrides)
    assert found.best.choice.depth.train == ("head",)
    assert "it takes 20 images." in format_advice(found)
    assert "have 20 images at least, to choose by, and better 100" in format_advice(found)


def test_images_without_labels_alone_are_refused_in_a_line(data, backbones):
    with pytest.raises(UserError, match="not task: redundancy; give the folder without labels"):
        advise(data, backbone=backbones[0], overrides=["task=redundancy"])


def test_advice_about_random_weights_is_refused_and_never_suggested(data, backbones, tmp_path):
    with pytest.raises(UserError, match="pretrained: false has none; remove it, or train all"):
        advise(data, backbone=backbones[0], overrides=[*SIZE, "pretrained=false"])
    bare = shutil.copytree(backbones[0], tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(UserError, match="save the model again$"):
        advise(data, backbone=str(bare), overrides=SIZE)
