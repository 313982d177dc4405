"""A run from recipe to report, and resumed."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from children import ended, start
from PIL import Image
from torch import nn

from hf_transfer.backbones.load import load_model
from hf_transfer.base.errors import UserError
from hf_transfer.inputs.cut import PROBES
from hf_transfer.planning.plan_text import format_plan
from hf_transfer.recipe.specs import (
    DataSpec,
    HeadSpec,
    LettersSpec,
    PhaseSpec,
    Recipe,
    SourceSpec,
    Stop,
)
from hf_transfer.results.report import RunReport
from hf_transfer.results.run_folder import FolderError
from hf_transfer.run import run
from hf_transfer.training import measuring

PHASES = (
    PhaseSpec("head", epochs=2, lr=1e-2, batch_size=8),
    PhaseSpec("all", epochs=2, batch_size=8, stop=Stop("accuracy", 2), best="accuracy"),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    random = np.random.default_rng(0)
    for k, name in enumerate(("cat", "dog", "fox")):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            pixels = random.integers(0, 200, (40, 40, 3), dtype=np.uint8)
            pixels[..., k] += 50
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def recipe(photos, **options):
    data = DataSpec(path=str(photos), validation=0.2, test=0.2, image_size=32)
    made = Recipe(
        name="small", backbone="timm/test_resnet", pretrained=False, phases=PHASES, data=data
    )
    return dataclasses.replace(made, **options)


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(recipe(photos), out)


def measured(report):
    """What of a report no clock decides."""
    facts = report.to_dict()
    for phase in facts["phases"]:
        phase.pop("seconds")
        phase["metrics"] = {k: v for k, v in phase["metrics"].items() if "_per_" not in k}
        phase["history"] = [
            {k: v for k, v in row.items() if not k.endswith(("_runtime", "_per_second"))}
            for row in phase["history"]
        ]
    return {k: v for k, v in facts.items() if k not in ("seconds", "created", "environment")}


def test_a_run_leaves_report_page_model_and_what_resuming_needs(finished):
    out, report = finished
    assert {path.name for path in out.iterdir()} == {
        ".hf_transfer", "recipe.yaml", "inputs.json", "phase-1-head", "phase-2-all", "model",
        "report.json", "report.html",
    }  # fmt: skip
    assert RunReport.load(out) == report
    assert report.metrics["n"] == 6
    assert report.metrics["test"]["n"] == 6
    assert [phase.name for phase in report.phases] == ["head", "all"]
    assert report.seconds["wall"] >= report.seconds["training"] > 0
    assert load_model(out).backbone.labels == ("cat", "dog", "fox")
    assert json.loads((out / "inputs.json").read_text())["images"] == 30


def test_validation_is_measured_on_the_features_that_are_there(photos, tmp_path, monkeypatch):
    """The prefix runs again for the images to test alone; likewise after a stop in between."""
    alone, seen = recipe(photos, phases=PHASES[:1]), []
    measure = measuring.measure

    def watched(trainer, *args):
        stem = next(m for m in trainer.model.modules() if isinstance(m, nn.Conv2d))
        hook = stem.register_forward_pre_hook(lambda module, x: seen.append(len(x[0])))
        try:
            return measure(trainer, *args)
        finally:
            hook.remove()

    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "measure", watched)
    whole = run(alone, tmp_path / "whole")
    assert [count for count in seen if count > PROBES] == [6]  # fewer find where it is cut
    monkeypatch.setattr(measuring, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(alone, tmp_path / "halved")
    monkeypatch.setattr(measuring, "measure", measure)
    assert measured(run(alone, tmp_path / "halved", resume=True)) == measured(whole)


def test_a_finished_run_is_read_back_and_not_trained_again(finished, photos):
    out, report = finished
    before = (out / "report.json").stat().st_mtime_ns
    assert run(recipe(photos), out, resume=True) == report
    assert (out / "report.json").stat().st_mtime_ns == before


def train_and_die(photos, out, kill):
    from children import kill_at

    kill_at(*kill)
    from hf_transfer import run as module

    module.CHECKPOINT_SECONDS = 0.0
    module.run(recipe(photos), out, resume=out.is_dir())


@pytest.mark.parametrize(
    "kill",
    [
        ("hf_transfer.run:TransferTrainer", 1),  # nothing trained
        ("hf_transfer.training.measuring:measure", 1),  # all trained, nothing measured
        ("hf_transfer.run:save_model", 1),
        ("hf_transfer.results.run_folder:finish", 1),  # the model written, the report not
        ("hf_transfer.results.run_folder:write_html", 1),
        ("hf_transfer.results.run_folder:model_card", 1),
    ],
)
def test_a_run_killed_around_its_training_ends_like_the_unbroken_one(
    finished, photos, tmp_path, kill
):
    out = tmp_path / "out"
    child = start(train_and_die, tmp_path / "log", photos, out, kill)
    assert ended(child) == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (out / "report.json").exists()
    again = run(recipe(photos), out, resume=True)
    assert measured(again) == measured(finished[1])
    weights = "model/model.safetensors"
    assert (out / weights).read_bytes() == (finished[0] / weights).read_bytes()


def test_resuming_with_other_images_or_weights_is_refused(finished, photos, tmp_path, monkeypatch):
    out, _ = finished
    (out / "report.json").rename(tmp_path / "report.json")
    try:
        inputs = json.loads((out / "inputs.json").read_text())
        for name in ("data", "weights"):
            (out / "inputs.json").write_text(json.dumps({**inputs, name: "0" * 64}))
            with pytest.raises(FolderError, match=f"--resume: the {name} differ"):
                run(recipe(photos), out, resume=True)
        (out / "inputs.json").write_text(json.dumps(inputs))
    finally:
        (tmp_path / "report.json").rename(out / "report.json")


def test_a_run_is_resumed_with_other_workers_and_the_same_data_by_another_path(
    finished, photos, tmp_path
):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "report.json").unlink()
    made = recipe(photos / ".." / photos.name, workers=1)
    assert run(made, out, resume=True).metrics == finished[1].metrics


def test_repeated_seeds_have_a_folder_each_and_a_median(photos, tmp_path):
    once = (PhaseSpec("head", epochs=1, batch_size=8),)
    report = run(recipe(photos, seeds=2, phases=once, loss="balanced"), tmp_path / "out")
    assert {"seed-0", "seed-1", "model", "report.json", "recipe.yaml"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert report.seeds["n"] == 2
    assert report.seed in (0, 1)


def folded(photos, folds=3, **of_data):
    pattern = r"^(\d)"
    data = DataSpec(path=str(photos), image_size=32, group=pattern, validation=0.2, **of_data)
    once = (PhaseSpec("head", epochs=1, lr=1e-2, batch_size=8),)
    return recipe(photos, data=data, phases=once, folds=folds)


@pytest.fixture(scope="module")
def crossed(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("crossed") / "out"
    return out, run(folded(photos), out)


def test_in_a_cross_validation_every_image_tests_once_a_model_that_never_saw_it(crossed, photos):
    """And the model that is saved is trained on all of them."""
    out, report = crossed
    parts = [RunReport.load(out / f"fold-{number}") for number in (1, 2, 3)]
    said = [json.loads((out / f"fold-{n}" / "answers.json").read_text()) for n in (1, 2, 3)]
    files = [name for one in said for name in one]
    assert len(files) == len(set(files)) == 30 == report.metrics["test"]["n"]
    assert sum(one.metrics["test"]["n"] for one in parts) == 30
    for one in said:  # groups are the images' numbers: no part has an image of another's
        assert {Path(name).stem for name in one}.isdisjoint(
            Path(name).stem for other in said if other is not one for name in other
        )
    right = sum(
        np.argmax(logits) == ["cat", "dog", "fox"].index(name.split("/")[0])
        for one in said
        for name, logits in one.items()
    )
    assert report.metrics["test"]["accuracy"] == pytest.approx(right / 30)
    assert report.folds["test"]["accuracy"]["values"] == [
        one.metrics["test"]["accuracy"] for one in parts
    ]
    assert report.data["images"] == {"train": 24, "validation": 6}
    assert report.measured[0] == "test"
    assert report.where == "in cross-validation"
    low, high = report.metrics["test"]["intervals"]["accuracy"]
    assert 0 <= low < report.metrics["test"]["accuracy"] < high <= 1
    assert "In 3 folds" in (out / "report.html").read_text()
    assert "cross-validation" in (out / "model" / "README.md").read_text()
    assert report.seconds["training"] > sum(one.seconds["training"] for one in parts)
    assert RunReport.load(out) == report
    assert run(folded(photos), out, resume=True) == report


def test_a_cross_validation_that_was_cut_off_goes_on_with_what_is_missing(
    crossed, photos, tmp_path
):
    out = shutil.copytree(crossed[0], tmp_path / "out")
    (out / "report.json").unlink()
    shutil.rmtree(out / "fold-3")
    first = (out / "fold-1" / "report.json").stat().st_mtime_ns
    assert run(folded(photos), out, resume=True).metrics == crossed[1].metrics
    assert (out / "fold-1" / "report.json").stat().st_mtime_ns == first


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"test": 0.2}, "with folds each image tests once; remove data.test"),
        ({"fold": (1, 3)}, "folds runs every part, and data.fold one"),
        ({"fold": (4, 3)}, r"fold \[4, 3\] is no part"),
    ],
)
def test_what_does_not_go_with_folds_is_told(photos, settings, said):
    with pytest.raises(UserError, match=said):
        folded(photos, **settings)


def test_folds_that_leave_a_class_without_images_are_refused_before_anything_trains(
    photos, tmp_path
):
    with pytest.raises(UserError, match="20 folds need 20 groups to train on, and there are 10"):
        run(folded(photos, folds=20), tmp_path / "a")
    few = dataclasses.replace(folded(photos).data, group=None, train_per_class=1)
    with pytest.raises(UserError, match="part 1 leaves 1 images of cat to train on"):
        run(dataclasses.replace(folded(photos), data=few), tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_random_weights_carry_no_licence(finished):
    assert finished[1].backbone["weights"] == "random"
    assert finished[1].backbone["license"] is None


def test_a_source_of_ones_own_is_trained_first(photos, tmp_path):
    once = (PhaseSpec("head", epochs=1, batch_size=8),)
    data = DataSpec(path=str(photos), image_size=32)
    first = SourceSpec("timm/test_resnet", (PhaseSpec("all", epochs=1, cold_head=True),), data)
    made = recipe(photos, backbone=None, pretrained=True, phases=once, source=first)
    report = run(made, tmp_path / "out")
    assert report.backbone["id"] == str(tmp_path / "out" / "source" / "model")
    assert (tmp_path / "out" / "source" / "report.json").is_file()


def test_drawn_letters_are_a_source_for_any_data(photos, tmp_path):
    once = (PhaseSpec("head", epochs=1, batch_size=8),)
    phases = (PhaseSpec("all", epochs=1, cold_head=True),)
    first = SourceSpec("timm/test_resnet", phases, letters=LettersSpec(fonts=1, images=111))
    made = recipe(photos, backbone=None, pretrained=True, phases=once, source=first)
    report = run(made, tmp_path / "out")
    source = RunReport.load(tmp_path / "out" / "source")
    assert len(source.data["labels"]) == 37
    assert not source.recipe["pretrained"]
    assert report.data["labels"] == ["cat", "dog", "fox"]
    assert report.backbone["id"] == str(tmp_path / "out" / "source" / "model")


def test_metrics_of_the_recipe_are_known_and_tried_before_anything_is_trained(photos, tmp_path):
    module = tmp_path / "sharp.py"
    module.write_text(
        "import datasets\nimport evaluate\n"
        "class Sharp(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        features = datasets.Features({'predictions': datasets.Value('int64'),\n"
        "                                      'references': datasets.Value('int64')})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=features)\n"
        "    def _compute(self, predictions, references):\n"
        "        right = sum(p == r for p, r in zip(predictions, references))\n"
        "        return {'sharp_score': float(right)}\n"
    )
    best = (PhaseSpec("head", epochs=2, batch_size=8, best="sharp_score"),)
    out = tmp_path / "out"
    report = run(recipe(photos, metrics=(str(module),), phases=best), out)
    assert report.phases[0].metrics["sharp_score"] == max(
        row["eval_sharp_score"] for row in report.phases[0].history
    )
    assert "sharp_score" in report.metrics
    wrong = (PhaseSpec("head", epochs=2, best="blunt_score"),)
    with pytest.raises(
        UserError, match="best: there is no metric 'blunt_score'; have .*sharp_score"
    ):
        run(recipe(photos, metrics=(str(module),), phases=wrong), tmp_path / "other")
    assert not (tmp_path / "other" / "phase-1-head").exists()


def test_a_metric_that_the_data_cannot_give_is_told_before_anything_is_trained(photos, tmp_path):
    wrong = (PhaseSpec("head", epochs=2, best="top5"),)
    with pytest.raises(UserError, match="top5 needs more than 5 labels"):
        run(recipe(photos, phases=wrong), tmp_path / "out")
    assert not (tmp_path / "out" / "phase-1-head").exists()


# --- other channels, and a head that is kept ---------------------------------------------------


def _own_backbone(folder, channels=3):
    from tiny_folders import timm_folder

    return str(timm_folder(folder, "test_resnet", in_chans=channels))


def _pictures(folder, channels):
    """Write pictures of so many channels, the class in one of them."""
    random = np.random.default_rng(0)
    for k, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            pixels = random.integers(0, 120, (40, 40, channels), dtype=np.uint8)
            pixels[..., k % channels] += 100 * (k + 1) // 2
            path = folder / name / f"{i}.png"
            if channels in (1, 4):
                image = pixels[..., 0] if channels == 1 else pixels
                Image.fromarray(image).save(path)
            else:
                np.save(path.with_suffix(".npy"), pixels)
    return folder


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_images_of_any_number_of_channels_go_all_the_way(tmp_path, channels):
    from hf_transfer.plans import plans_of
    from hf_transfer.serving.predict import predict

    folder = _pictures(tmp_path / "data", channels)
    data = DataSpec(path=str(folder), validation=0.25, image_size=32, channels=channels)
    spec = dataclasses.replace(
        recipe(folder), backbone=_own_backbone(tmp_path / "own"), pretrained=True, data=data
    )
    (plan,) = plans_of(spec)
    note = f"conv1.0.weight was converted from pretrained weights to {channels} channels; it trains"
    assert any(text.startswith(note) for text in plan.notes)
    first = plan.phases[0].phase
    assert (first.name, first.groups) == ("head", ("stem", "head"))
    report = run(spec, tmp_path / "out")
    assert report.phases[0].checks["moved"] == 3  # the first layer, and the head's two
    assert sum(report.data["counts"]["train"].values()) == 12  # none was left out
    model = load_model(tmp_path / "out")
    assert model.backbone.image.channels == channels
    assert not [row for row in predict(model, folder) if row.error]


def test_the_first_layer_stays_as_it_is_made_where_the_recipe_says_so(tmp_path):
    folder = _pictures(tmp_path / "data", 2)
    data = DataSpec(path=str(folder), validation=0.25, image_size=32, channels=2)
    phases = (
        PhaseSpec(("head", "not conv1.0.weight"), epochs=1, lr=1e-2, batch_size=8),
        PhaseSpec(("last 1 stage"), epochs=1, batch_size=8),
    )
    spec = dataclasses.replace(
        recipe(folder),
        backbone=_own_backbone(tmp_path / "own"),
        pretrained=True,
        data=data,
        phases=phases,
    )
    report = run(spec, tmp_path / "out")
    assert report.phases[0].groups == ("head",)
    assert report.phases[0].features == "cached"


def test_a_head_for_the_same_labels_is_kept_and_may_train_with_the_backbone_at_once(
    photos, tmp_path
):
    from hf_transfer.plans import plans_of

    once = recipe(photos)
    run(once, tmp_path / "once")
    kept = dataclasses.replace(
        once,
        backbone=str(tmp_path / "once" / "model"),
        pretrained=True,
        head=HeadSpec(keep=True),
        phases=(PhaseSpec("all", epochs=1, lr=1e-5, batch_size=8),),
    )
    (plan,) = plans_of(kept)
    assert plan.groups.layout.head_kept
    assert "its own head is kept" in " ".join(format_plan(plan).split())  # lines are folded
    again = run(kept, tmp_path / "again")
    one, two = load_model(tmp_path / "once"), load_model(tmp_path / "again")
    for name, value in one.state_dict().items():
        if "fc." in name:
            assert torch.allclose(value, two.state_dict()[name], atol=1e-3)
    assert again.phases[0].checks["unmoved"] == []
    others = DataSpec(path=str(_pictures(tmp_path / "two", 4)), image_size=32)
    with pytest.raises(UserError, match="is for 3 labels, not 2"):
        list(plans_of(dataclasses.replace(kept, data=others)))


def test_adapters_are_kept_beside_the_merged_model_of_the_median_seed(photos, tmp_path):
    phases = (
        PhaseSpec("head", epochs=1, lr=1e-2, batch_size=8),
        PhaseSpec("lora(r=2)", epochs=1, batch_size=8, keep_adapters=True),
    )
    spec = recipe(photos, phases=phases, seeds=2)
    spec = dataclasses.replace(spec, backbone=_own_backbone(tmp_path / "own"), pretrained=True)
    report = run(spec, tmp_path / "out")
    for place in (tmp_path / "out", tmp_path / "out" / f"seed-{report.seed}"):
        assert {path.name for path in (place / "adapter").iterdir()} >= {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
    load_model(tmp_path / "out")


def test_train_is_the_command_of_that_name(photos, tmp_path, monkeypatch):
    from hf_transfer import UserError, train
    from hf_transfer import run as module

    monkeypatch.chdir(tmp_path)
    pushed = []
    monkeypatch.setattr(module, "check_owner", lambda repo: pushed.append(repo))
    monkeypatch.setattr(module, "push_finished", lambda folder, repo: pushed.append((folder, repo)))
    small = ["pretrained=false", "data.image_size=32", "phases.*.epochs=1"]
    about = {"data": photos, "backbone": "timm/test_resnet", "overrides": small}
    report = train("lp_ft", **about, report_to="tensorboard", push_to="alice/small")
    assert report == RunReport.load(tmp_path / "runs" / "lp_ft")
    assert pushed == ["alice/small", (Path("runs") / "lp_ft", "alice/small")]
    assert list((tmp_path / "runs" / "lp_ft").rglob("events.out.tfevents.*"))
    with pytest.raises(
        UserError, match="is a comparison; run it with hf-transfer train quickstart"
    ):
        train("quickstart")
