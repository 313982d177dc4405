"""auto: one run, from a folder of images to a model that predicts, within its time."""

import copy
import dataclasses
import html
import json
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from drawn import photos
from PIL import Image
from tiny_folders import timm_folder, vit_folder

from hf_transfer import (
    DataSpec,
    RunReport,
    UserError,
    auto,
    evaluate,
    load_backbone,
    load_model,
    predict,
    runs,
)
from hf_transfer.cli import main, parser
from hf_transfer.cli.training import is_auto
from hf_transfer.data.sources import list_source
from hf_transfer.deciding import attempts, taken, tuning
from hf_transfer.deciding.attempts import Attempts
from hf_transfer.deciding.auto import TEXT, _words, labelled, recipe_of
from hf_transfer.deciding.bag import model_logits
from hf_transfer.deciding.boundaries import statistics_of
from hf_transfer.deciding.folds import groups_of
from hf_transfer.deciding.presets import KNOWN, PRESETS, preset
from hf_transfer.deciding.tried import Clock
from hf_transfer.deciding.tuning import (
    Work,
    candidates,
    from_scratch,
    least_seconds,
    work_within,
)
from hf_transfer.recipe.load import load_recipe, parse_recipe
from hf_transfer.results.page_phases import command
from hf_transfer.serving.familiar import load_familiar

QUICK = ["precision=fp32"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return timm_folder(tmp_path_factory.mktemp("backbone") / "tiny", "test_resnet")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """24 images of each of three classes, noise with more of one colour."""
    folder = photos(tmp_path_factory.mktemp("images") / "three", ("a", "b", "c"), 24, 32)
    for channel, name in enumerate("abc"):
        for path in (folder / name).iterdir():
            pixels = np.asarray(Image.open(path)).astype(int)
            pixels[..., channel] += 8
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory, images, backbone):
    said: list[str] = []
    out = tmp_path_factory.mktemp("runs") / "auto"
    report = auto(
        images,
        backbone,
        minutes=2,
        epochs=2,
        image_size=32,
        overrides=["data.test=0.2"],
        scratch=True,
        out=out,
        on_progress=said.append,
    )
    return report, said, out


def test_random_weights_are_tried_where_asked_for_and_never_chosen(found):
    report, said, _ = found
    row = report.auto["tried"][-1]
    assert row["what"] == "everything, from random weights"
    assert not row["kept"]
    assert 0 <= row["accuracy"] <= 1
    assert said.index(next(line for line in said if "random weights" in line)) > said.index(
        next(line for line in said if line.startswith("chosen: "))
    )


def test_each_thing_that_is_tried_has_a_line_that_says_why_it_is_kept_or_not(found):
    report, said, _ = found
    tried = report.auto["tried"]
    assert tried[0]["what"] == "exact head"
    (kept,) = [row["what"] for row in tried if row["kept"]]
    assert any(line.startswith(f"chosen: {kept}: ") for line in said)
    what = {row["what"] for row in tried}
    gently, free = candidates()
    assert {f"{free.what}, {point}" for point in free.points} <= what
    assert "advice" in what
    assert sum(", gently, " in name for name in what) == len(gently.points) == len(tuning.POINTS)
    assert all(row["why"] for row in tried)
    assert all(any(row["what"] in line for line in said) for row in tried)
    assert any(line.startswith("chosen: ") for line in said)


def test_what_to_expect_is_of_images_that_chose_nothing_and_has_an_interval(found):
    report, _, _ = found
    expected = report.auto["expected"]
    low, high = expected["interval"]
    assert low <= expected["accuracy"] <= high
    assert report.metrics["n"] == expected["n"] <= report.data["images"]["train"]
    assert report.metrics["accuracy"] == pytest.approx(expected["accuracy"])
    assert 0 < report.auto["majority"] < 0.6
    assert report.metrics["said"][0].startswith("Expect an accuracy of ")
    assert report.auto["exact_head"] is not None


def test_the_page_shows_the_command_with_every_option_that_changes_the_model(found, tmp_path):
    report, _, out = found
    said = command(report)
    assert said.endswith("--image-size 32 --seed 0 --epochs 2 --scratch --set data.test=0.2")
    assert said in html.unescape((out / "report.html").read_text())
    words = parser().parse(shlex.split(said)[1:])
    assert (words.epochs, words.scratch, words.set) == (2, True, ["data.test=0.2"])
    options = _words(0.5, r"^(\d+)_", False, False, ["weights=/home/me/own.pt", "loss=balanced"])
    assert options == [
        *("--epochs", "0.5", "--group", r"^(\d+)_", "--no-refit"),
        *("--set", "weights=own.pt", "--set", "loss=balanced"),
    ]


def test_the_run_is_like_any_other(found, images, capsys):
    report, _, out = found
    assert RunReport.load(out) == report
    assert {p.name for p in out.iterdir()} >= {"recipe.yaml", "report.json", "report.html", "model"}
    assert len(report.examples["rows"]) > 5
    assert load_familiar(out / "model").means.shape[0] == 3  # so that predict --unknown works
    assert "data:image/webp" in (out / "report.html").read_text()
    recipe = load_recipe(out / "recipe.yaml")
    assert recipe.precision in ("fp32", "bf16")  # what was faster: measured once, for all trainings
    phases = recipe.phases
    assert len(phases) == len(report.phases)
    assert phases[0].solve == "lbfgs" or phases[0].cold_head
    assert main(["evaluate", str(out), "--data", str(images), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["n"] > 0
    (run,) = runs(out)
    assert run.report == report
    assert main(["runs", str(out.parent)]) == 0
    assert "auto" in capsys.readouterr().out


def test_the_saved_model_gives_the_logits_that_the_report_measured(found, images):
    report, _, out = found
    model = load_model(out)
    recipe = recipe_of(images, "x", 32, None, 0, ["data.test=0.2"])
    test = labelled(recipe, list_source(recipe.data), model).test
    right = (model_logits(model, test).argmax(1) == test.labels).mean()
    assert right == pytest.approx(report.metrics["test"]["accuracy"])


def test_what_was_trained_from_a_new_head_has_a_recipe_without_a_solved_one(
    images, backbone, tmp_path, monkeypatch
):
    name = f"{candidates()[1].what}, {tuning.WHOLE}"
    monkeypatch.setattr(taken, "take", lambda work: name)
    out = tmp_path / "out"
    report = auto(images, backbone, minutes=2, epochs=1, image_size=32, overrides=QUICK, out=out)
    (phase,) = load_recipe(out / "recipe.yaml").phases
    assert (phase.cold_head, phase.solve, phase.still_norms) == (True, None, None)
    (trained,) = report.phases
    assert trained.trainable_parameters == trained.total_parameters
    assert load_model(out).backbone.labels == ("a", "b", "c")
    assert "exact head" in (out / "report.html").read_text()


def test_with_few_images_of_a_class_what_gained_elsewhere_is_taken_and_nothing_chosen(
    images, backbone, tmp_path
):
    said: list[str] = []
    report = auto(
        images,
        backbone,
        minutes=1,
        epochs=2,
        image_size=32,
        overrides=["data.train_per_class=6", "data.window=[40, 400]", *QUICK],
        out=tmp_path / "few",
        on_progress=said.append,
    )
    assert load_model(tmp_path / "few" / "model").backbone.image.window == (40, 400)
    way = f"{candidates()[0].what}, {tuning.SOLVED}"
    tried = {row["what"]: row for row in report.auto["tried"]}
    assert list(tried) == ["exact head", "exact head, blended statistics", way]
    assert "6 images in the smallest class" in tried["exact head, blended statistics"]["why"]
    assert tried[way]["kept"]
    assert any(line.startswith(f"chosen: {way}: with 6 images") for line in said)
    assert [phase.solve for phase in report.phases] == ["lbfgs", None]
    assert report.auto["expected"]["accuracy"] == pytest.approx(tried[way]["accuracy"])


def test_with_few_images_and_no_time_the_exact_head_stays(images, backbone, tmp_path):
    few = ["data.train_per_class=6", *QUICK]
    out = tmp_path / "few"
    report = auto(images, backbone, minutes=1e-3, image_size=32, overrides=few, out=out)
    assert [phase.solve for phase in report.phases] == ["lbfgs"]
    assert [row["what"] for row in report.auto["tried"] if row["kept"]] == ["exact head"]


def test_a_part_without_which_there_is_one_class_trains_nothing(images, backbone):
    work = attempts_on(images, backbone, 1000)
    one, others = np.flatnonzero(work.truth == 0), np.flatnonzero(work.truth > 0)
    trial = work._trial(candidates()[0], tuning.Work(1, 30, 1.0, 1.0))
    trial.parts[:] = [(one, others)]
    work._try(trial)
    assert "there is one class alone" in work.tried[-1].why
    assert not work.origin


def test_what_has_no_time_is_told_with_the_time_that_it_needs(images, backbone, tmp_path):
    short = tmp_path / "short"
    report = auto(images, backbone, minutes=1e-3, image_size=32, group=r"(\d)\.", out=short)
    assert report.metrics["groups"] > 1  # that its intervals are over
    rows = {row["what"]: row["why"] for row in report.auto["tried"]}
    (gently,) = (why for what, why in rows.items() if what.endswith(", gently"))
    assert "; allow " in gently
    assert "longer than the 0.1 s allowed" in report.warnings[0]


def attempts_on(images: Path, backbone: Path, seconds: float) -> Attempts:
    listed = list_source(DataSpec(path=str(images)))
    recipe = recipe_of(images, str(backbone), 32, None, 0, ())
    model = load_backbone(recipe.backbone, listed.labels, image_size=32)
    data = labelled(recipe, listed, model)
    return Attempts(model, recipe, data, data.train, None, Clock(seconds), print)


@pytest.fixture(scope="module")
def started(images, backbone) -> Callable[[], Attempts]:
    """Makes attempts that have their heads, which are solved for once."""
    made = attempts_on(images, backbone, 1000)
    made.heads()

    def own() -> Attempts:
        work = copy.deepcopy(made)
        work.clock = Clock(1000)
        return work

    return own


def test_a_first_pass_shows_whether_there_is_time_for_blended_statistics(
    images, backbone, monkeypatch
):
    def slow(model, images):
        time.sleep(0.05)  # thirty such passes are more than a quarter of what is left
        return statistics_of(model, images)

    work = attempts_on(images, backbone, 5.0)
    work.each = 0.0  # as if nothing took any time
    monkeypatch.setattr(attempts, "statistics_of", slow)
    work._blended()
    assert work.tried[-1].why.startswith("not tried: it takes ")
    assert not work.ways


def test_the_first_way_leaves_time_for_the_second(images, backbone, monkeypatch):
    gently, free = candidates()
    work = attempts_on(images, backbone, 1000)
    clock, data = work.clock, work.data
    work.each = 0.9 * clock.left / work_within(1e9, gently.spec, len(data.train), 1.0).needed
    begun = []

    def tried(self, trial):
        begun.append((trial.candidate.what, trial.work.folds))
        trial.done = len(trial.parts)
        self.trials.append(trial)
        object.__setattr__(clock, "began", clock.began - trial.work.seconds * trial.work.folds)

    monkeypatch.setattr(Attempts, "advised", lambda self, epochs: (gently, free))
    monkeypatch.setattr(Attempts, "_try", tried)
    work.fine_tune()  # alone the first would have been tried in five folds
    assert begun == [(gently.what, 1), (free.what, 1)]


def test_each_way_is_judged_by_its_own_images_and_the_choice_is_never_by_those_it_tells(
    started, monkeypatch
):
    """Where there was time for one of the first way's five folds, and for three of the second's."""
    first, second = candidates()
    work = started()

    def hold_out(self, trial):
        rows = trial.parts[trial.done][1]
        for point in trial.candidate.points:
            trial.logits[point][rows] = work.start.logits[rows]
        trial.done += 1

    monkeypatch.setattr(Attempts, "_hold_out", hold_out)
    work._try(work._trial(first, tuning.Work(5, 60, 1.0, 1.0)))
    work.trials[0].done = 1
    for logits in work.trials[0].logits.values():
        logits[np.concatenate([part for _, part in work.trials[0].parts[1:]])] = np.nan
    work._try(work._trial(second, tuning.Work(3, 60, 1.0, 1.0)))
    seen = []
    blind = taken.chosen_blindly
    monkeypatch.setattr(taken, "chosen_blindly", lambda *given: seen.append(given) or blind(*given))
    for trial, held in zip(work.trials, (1, 3), strict=True):
        judged = np.concatenate([part for _, part in trial.parts[:held]])
        rows, logits = taken.expected(work, f"{trial.candidate.what}, all the way")
        assert len(rows)
        assert set(rows) <= set(judged)
        assert np.isfinite(logits).all()
        assert len(np.unique(seen[-1][2][judged])) > 1


def test_groups_may_be_fewer_than_folds(images, backbone, monkeypatch):
    work = attempts_on(images, backbone, 1000)
    work = dataclasses.replace(work, groups=np.arange(len(work.images)) % 3)
    monkeypatch.setattr(Attempts, "_hold_out", lambda self, t: setattr(t, "done", t.done + 1))
    trial = work._trial(candidates()[0], tuning.Work(5, 60, 1.0, 1.0))
    monkeypatch.setattr(Attempts, "_judge", lambda self, trial: None)
    work._try(trial)
    assert trial.done == len(trial.parts) == 3


def test_the_minutes_that_are_told_are_enough_for_a_share_of_them(images, backbone):
    work = attempts_on(images, backbone, 60)
    assert work._no_time(20.0, attempts.HEADS).endswith("allow 2 minutes")  # a quarter is 13 s
    assert work._no_time(20.0).endswith("allow 1 minute")


def test_time_that_is_left_holds_out_further_parts_of_every_trial(started, monkeypatch):
    """Each training takes 100 s of a fixed clock: after one part of each way 380 s are left, of
    which 100 are for the last training."""
    work = started()
    spent = [0.0]
    monkeypatch.setattr(Clock, "left", property(lambda self: 580 - spent[0]))
    rows = len(work.images)

    def hold_out(self, trial):
        spent[0] += 100
        inside, outside = trial.parts[trial.done]
        assert sorted([*inside, *outside]) == list(range(rows))
        for logits in trial.logits.values():
            logits[outside] = self.start.logits[outside]
        trial.done, trial.took = trial.done + 1, 100.0

    monkeypatch.setattr(Attempts, "_hold_out", hold_out)
    for way in candidates():
        one = Work(1, 30, 100.0, 200.0)
        work._try(work._trial(way, one))
    assert [trial.told for trial in work.trials] == ["one part held out"] * 2
    work._try_more()
    assert [trial.told for trial in work.trials] == ["2 of 4 folds"] * 2
    assert spent == [400.0]
    for logits in (work.ways[way] for way in work.origin):
        assert np.isfinite(logits[:, 0]).sum() == pytest.approx(rows / 2, abs=3)
    names = [one.what for one in work.tried]
    assert len(names) == len(set(names))
    assert sum("2 of 4 folds" in one.why for one in work.tried) == len(work.origin) == 5


def test_random_weights_have_time_set_aside_and_are_compared_on_what_they_have_time_for(
    started, monkeypatch
):
    """Each training takes 100 s of a fixed clock; after two parts of each way and the last
    training 180 s are left: one part, and not two."""
    work = started()
    spent = [0.0]
    monkeypatch.setattr(Clock, "left", property(lambda self: 680 - spent[0]))

    def hold_out(self, trial, model=None):
        spent[0] += 100
        for logits in trial.logits.values():
            logits[trial.parts[trial.done][1]] = self.start.logits[trial.parts[trial.done][1]]
        trial.done, trial.took = trial.done + 1, 100.0

    monkeypatch.setattr(Attempts, "_hold_out", hold_out)
    work.each = 100 / work_within(1e9, from_scratch().spec, len(work.images), 1.0, 1, False).seconds
    work.keep_for_scratch()
    assert work.left == pytest.approx(580)
    for way in candidates():
        work._try(work._trial(way, Work(1, 30, 100.0, 200.0)))
    work._try_more()
    assert [trial.done for trial in work.trials] == [2, 2]
    spent[0] += 100  # of the last training
    work.from_scratch(work.model)
    assert "never chosen (one part held out" in work.tried[-1].why
    assert spent == [600]


def test_random_weights_that_take_too_long_have_no_time_set_aside(images, backbone):
    work = attempts_on(images, backbone, 100)
    work.each = 10.0
    work.keep_for_scratch()
    assert work.aside == 0
    work.from_scratch(work.model)
    assert work.tried[-1].why.startswith("not tried: it takes ")


def test_images_of_a_group_stay_together_and_a_backbone_needs_no_batch_norm(images, tmp_path):
    listed = list_source(DataSpec(path=str(images), group=r"^(\d+)\."))
    recipe = recipe_of(images, str(vit_folder(tmp_path / "vit")), None, r"^(\d+)\.", 0, ())
    said: list[str] = []
    model = load_backbone(recipe.backbone, listed.labels)
    data = labelled(recipe, listed, model)
    groups = groups_of(listed, data.train.files)
    work = Attempts(model, recipe, data, data.train, groups, Clock(60), said.append)
    assert all(len(set(fold[groups == group])) == 1 for fold in work.folds for group in set(groups))
    work.heads()
    assert [tried.what for tried in work.tried] == ["exact head"]
    assert len(said) == 1


def test_without_refit_the_model_has_not_seen_one_fold(images, backbone, tmp_path):
    report = auto(
        images,
        backbone,
        minutes=1,
        epochs=2,
        image_size=32,
        refit=False,
        overrides=["data.train_per_class=8"],
        out=tmp_path / "held",
    )
    counts = report.data["images"]
    assert counts["validation"] > 0
    assert counts["train"] + counts["validation"] == 8 * len(report.labels)


# --- time ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "folds", "steps"),
    [(1e4, 5, 100), (130, 3, 100), (65, 1, 100), (35, 1, 50), (20, 1, 30), (19, 1, 0)],
)
def test_cross_validation_comes_before_one_part_held_out_and_steps_go_last(left, folds, steps):
    found = work_within(left, candidates()[0].spec, 320, 0.01)
    if not steps:
        assert found is None
    else:
        assert (found.folds, found.steps) == (folds, steps)
        assert found.needed <= left


def test_the_least_work_fits_into_the_time_that_is_told():
    spec = candidates()[0].spec
    needed = least_seconds(spec, 500, 0.01)
    assert work_within(needed, spec, 500, 0.01) is not None


# --- what is asked ---------------------------------------------------------------------------


def test_the_recipe_of_auto_is_lp_fts():
    ours, theirs = parse_recipe(TEXT, "auto.yaml"), load_recipe("lp_ft")
    assert ours.phases == theirs.phases


@pytest.mark.parametrize("change", ["phases.1.lr=1e-4", "tta=true", "seeds=3", "report_to=wandb"])
def test_what_auto_would_not_look_at_is_refused(tmp_path, change):
    key = change.partition("=")[0].partition(".")[0]
    with pytest.raises(UserError, match=f"auto does not use {key}; leave it out"):
        auto(tmp_path, "timm/test_resnet", overrides=[change], out=tmp_path / "x")


@pytest.fixture(scope="module")
def uneven(images, tmp_path_factory) -> Path:
    """24 images of a class, and 12 of one that looks similar."""
    folder = tmp_path_factory.mktemp("uneven")
    for name, count in {"a": 24, "b": 12}.items():
        (folder / name).mkdir()
        for path in sorted((images / name).iterdir())[:count]:
            pixels = np.asarray(Image.open(path)).astype(int)
            pixels[..., "ab".index(name)] -= 6  # of the eight by which the classes differ
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / path.name)
    return folder


@pytest.fixture(scope="module")
def plain(uneven, backbone, tmp_path_factory) -> tuple[RunReport, Path]:
    """A run whose head makes up for nothing."""
    out = tmp_path_factory.mktemp("plain") / "run"
    here = {"minutes": 0.01, "image_size": 32}
    return auto(uneven, backbone, overrides=QUICK, out=out, **here), out


def rare(report) -> float:
    """Return which share of the rare class is told right."""
    return next(row["recall"] for row in report.metrics["per_class"] if row["label"] == "b")


@pytest.mark.parametrize(
    "setting", ["loss=balanced", "loss=logit_adjusted", "class_weights={b: 3}"]
)
def test_the_head_of_auto_makes_up_for_uneven_classes(uneven, plain, backbone, tmp_path, setting):
    before, out = plain
    here = {"minutes": 0.01, "image_size": 32, "overrides": [*QUICK, setting]}
    found = auto(uneven, backbone, out=tmp_path / "even", **here)
    heads = [load_model(out), load_model(tmp_path / "even")]
    pool = labelled(
        recipe_of(uneven, backbone, 32, None, 0, []),
        list_source(DataSpec(path=str(uneven))),
        heads[0],
    ).train
    shares = [(model_logits(model, pool).argmax(1) == 1).mean() for model in heads]
    assert shares[1] > shares[0]
    assert rare(found) > rare(before)
    key = setting.partition("=")[0]
    assert any(key in row["what"] for row in found.auto["tried"])
    assert not any(key in row["what"] for row in before.auto["tried"])
    if key == "loss":
        assert "Expect a balanced accuracy of" in found.metrics["said"][0]
        assert found.auto["expected"]["balanced_accuracy"] == found.metrics["balanced_accuracy"]
        assert found.auto["majority"] == 0.5


def test_weights_of_a_class_that_there_is_not_are_refused_before_anything_is_tried(
    uneven, backbone, tmp_path
):
    told: list[str] = []
    with pytest.raises(UserError, match="no label 'rust'"):
        auto(
            uneven,
            backbone,
            overrides=[*QUICK, "class_weights={rust: 3}"],
            out=tmp_path / "x",
            on_progress=told.append,
        )
    assert len(told) == 1


def test_a_focal_loss_is_refused_in_the_words_of_auto(tmp_path):
    with pytest.raises(UserError, match="^auto solves for its head, .*balanced.*full"):
        auto(tmp_path, "timm/test_resnet", overrides=["loss=focal"], out=tmp_path / "x")


def test_a_pretext_is_refused_in_a_line(tmp_path):
    with pytest.raises(UserError, match="auto is for images with labels.*free_labels"):
        auto(tmp_path, "timm/test_resnet", overrides=["task=rotation"], out=tmp_path / "x")


# --- other tasks -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(images, tmp_path_factory) -> dict[str, Path]:
    """Tables by task: which of two colours an image has more of, and how much red in numbers."""
    place = tmp_path_factory.mktemp("tables")
    told, numbers = ["image,red,green"], ["image,heat,cold"]
    for path in sorted(images.glob("*/*")):
        name, kind = path, path.parent.name
        heat = 100 + 7 * np.asarray(Image.open(path))[..., 0].mean()
        told.append(f"{name},{int(kind == 'a')},{int(kind in 'ab')}")
        numbers.append(f"{name},{heat:.2f},{-heat / 3:.2f}")
    for task, lines in {"multi_label": told, "regression": numbers}.items():
        (place / f"{task}.csv").write_text("\n".join(lines))
    return {task: place / f"{task}.csv" for task in ("multi_label", "regression")}


@pytest.mark.parametrize(
    ("task", "names", "leads", "unit"),
    [
        ("multi_label", ("red", "green"), "map", "a mean average precision"),
        ("regression", ("heat", "cold"), "r2", "an R²"),
    ],
)
def test_several_labels_and_numbers_are_chosen_for_like_classes(
    tables, images, backbone, tmp_path, task, names, leads, unit
):
    settings = [
        f"task={task}",
        f"data.label_columns={json.dumps(names)}",
        "data.test=0.2",
        *QUICK,
    ]
    said: list[str] = []
    report = auto(
        tables[task],
        backbone,
        minutes=2,
        epochs=1,
        image_size=32,
        overrides=settings,
        out=tmp_path / "run",
        on_progress=said.append,
    )
    assert RunReport.load(tmp_path / "run") == report
    assert report.metrics["said"][0].startswith(f"Expect {unit} of ")
    expected = report.auto["expected"]
    assert expected[leads] == report.metrics[leads]
    assert expected["interval"][0] <= expected[leads] <= expected["interval"][1]
    tried = report.auto["tried"]
    assert tried[0]["what"] == "exact head"
    assert len(tried) >= 1 + len(candidates()[0].points) + len(candidates()[1].points)
    assert all(row[leads] is not None for row in tried if "gently" in row["what"])
    assert report.auto["exact_head"] is not None
    assert any(line.startswith("chosen: ") for line in said)
    assert "Most common class" not in (tmp_path / "run" / "report.html").read_text()
    recipe = recipe_of(tables[task], "x", 32, None, 0, settings)
    test = labelled(recipe, list_source(recipe.data, task), load_model(tmp_path / "run")).test
    table = tmp_path / "test.csv"
    lines = tables[task].read_text().splitlines()
    there = [line for line in lines if line.split(",")[0].endswith(tuple(test.files))]
    table.write_text("\n".join([lines[0], *there]))
    found = evaluate(tmp_path / "run", table)["metrics"]
    assert found["n"] == len(test) == len(there)
    assert found[leads] == pytest.approx(report.metrics["test"][leads], abs=1e-3)


def test_the_exact_head_alone_answers_in_the_targets_units(tables, images, backbone, tmp_path):
    """And is the model that was measured: with so few images nothing else may be chosen."""
    settings = ["task=regression", 'data.label_columns=["heat"]', *QUICK]
    table = tmp_path / "few.csv"
    lines = tables["regression"].read_text().splitlines()
    table.write_text("\n".join([lines[0], *lines[1::5]]))
    out = tmp_path / "run"
    report = auto(table, backbone, minutes=1, image_size=32, overrides=settings, out=out)
    assert [row["what"] for row in report.auto["tried"]][-1] == "fine-tuning"
    assert "15 images nothing can be chosen (20 needed)" in report.auto["tried"][-1]["why"]
    answers = predict(out, sorted(images.glob("*/*")))
    told = np.array([dict(found.values)["heat"] for found in answers])
    true = [float(line.split(",")[1]) for line in tables["regression"].read_text().splitlines()[1:]]
    assert np.abs(told - true).mean() < np.std(true)


def test_the_images_may_take_the_place_of_a_recipe(tmp_path):
    (tmp_path / "t.csv").write_text("image,label\n")
    (tmp_path / "r.yaml").write_text("")
    assert is_auto("auto")
    assert is_auto(str(tmp_path))
    assert is_auto(str(tmp_path / "t.csv"))
    assert is_auto("alice/flowers")
    assert not is_auto("lp_ft")
    assert not is_auto(str(tmp_path / "r.yaml"))
    assert not is_auto("lp")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["auto"], "auto needs labelled images"),
        (["lp_ft", "--minutes", "3"], "--minutes is for auto"),
        (["lp_ft", "--scratch"], "--scratch is for auto"),
        (["lp_ft", "--minutes", "0"], "--minutes is for auto"),
        (["auto", "--data", "x", "--minutes", "nan"], "minutes is nan, which is not a number"),
        (["auto", "--data", "x", "--epochs", "0"], "epochs must be above 0, not 0"),
        (["auto", "--data", "x", "--resume"], "auto cannot be resumed"),
        (["auto", "--data", "x", "--preset", "godo"], "no choice 'godo'; nearest: good"),
    ],
)
def test_what_does_not_go_together_is_told(words, said, capsys):
    with suppress(SystemExit):  # as argparse ends it
        assert main(["train", *words]) == 2
    assert said in capsys.readouterr().err


# --- presets ---------------------------------------------------------------------------------


def test_a_preset_without_its_weights_says_what_to_do_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("hf_transfer.deciding.presets.is_here", lambda name: "lite0" in name)
    assert preset("fast").backbone.endswith("lite0.in1k")
    with pytest.raises(UserError, match=r"give --backbone timm/tf_efficientnet_lite0.*hf download"):
        preset("good")
    assert preset("best", "x", minutes=3).minutes == 3


def test_what_is_known_of_backbones_is_what_timm_says():
    timm = pytest.importorskip("timm")
    for known in KNOWN:
        assert timm.get_pretrained_cfg(known.name).license == known.licence
    assert {p.backbone for p in PRESETS.values()} <= {known.id for known in KNOWN}


def test_the_clock_keeps_a_reserve():
    clock = attempts.Clock(100.0)
    assert 89 < clock.left <= 90
    assert np.isclose(clock.end - clock.began, 110)
