"""Runs that learn from images without labels first: one run, one report, bit for bit again."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small import RESNET, images, state, trainer
from tiny_folders import vit_folder
from transformers import TrainerCallback

from hf_transfer.backbones.load import load_backbone, load_model
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import DataError, RecipeError, UserError
from hf_transfer.plans import plans_of, plans_text
from hf_transfer.recipe.load import parse_recipe
from hf_transfer.recipe.tasks import PRETEXTS, TASKS, labels_of
from hf_transfer.results.conclusions import cautions
from hf_transfer.results.page import report_page
from hf_transfer.results.report import RunReport
from hf_transfer.results.summary import summary
from hf_transfer.run import run
from hf_transfer.serving.answers import Answers
from hf_transfer.serving.embed import embed
from hf_transfer.serving.evaluate import evaluate
from hf_transfer.serving.explain import explain
from hf_transfer.serving.export import export
from hf_transfer.serving.loaders import check_loaders
from hf_transfer.serving.predict import predict
from hf_transfer.space.models import shown_model

RECIPE = """
source:
  pretext: PRETEXT
  backbone: timm/test_resnet
  data: {path: UNLABELLED}
  phases: [{train: all, epochs: 2, lr: 1e-3, batch_size: 16, augment: light}]
data: {path: LABELLED, image_size: 32, validation: 0.25, test: 0.25}
phases: [{train: head, solve: lbfgs}]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A labelled folder, and one without labels that holds copies of it and others."""
    place, rng = tmp_path_factory.mktemp("pretexts"), np.random.default_rng(0)
    for number in range(76):
        kind = number % 3
        pixels = rng.integers(0, 256, (40, 40, 3))
        pixels[:20, :, kind] += 90
        folder = place / "labelled" / "abc"[kind] if number < 36 else place / "mine"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number}.png")
    shutil.copytree(place / "labelled", place / "mine" / "copies")
    return place


def recipe(place, pretext):
    text = RECIPE.replace("PRETEXT", pretext).replace("UNLABELLED", str(place / "mine"))
    return parse_recipe(text.replace("LABELLED", str(place / "labelled")), "free.yaml")


@pytest.fixture(scope="module")
def rotated(place):
    return run(recipe(place, "rotation"), place / "run"), place / "run"


def test_a_run_learns_from_images_without_labels_first_and_its_report_tells(rotated, place):
    report, out = rotated
    source = report.source
    assert source["task"] == "rotation"
    assert source["weights"] == "random"
    assert source["held_out"] == 18
    assert sum(source["images"].values()) == 76 - 18
    assert [epoch for epoch, _ in source["curve"]] == [1.0, 2.0]
    assert source["before"].keys() == {"rank", "spread", "probe_accuracy"}
    assert source["metrics"].keys() >= {"accuracy", "rank", "spread", "probe_accuracy"}
    assert report.backbone["id"] == str(out / "source" / "model")
    assert RunReport.load(out) == report
    for text in (report_page(report), summary(report)):
        assert (
            "58 images without labels of mine (learning from rotations, from random weights)"
            in text
        )
        assert "18 of these images were left out: the validation or test images have them," in text
        assert "accuracy of a linear probe went from" in text
    one = summary(replace(report, source={**source, "held_out": 1}))
    assert "1 of these images was left out: the validation or test images have it, or" in one
    assert "timm/test_resnet · trained on labelled" in report_page(report)
    card = (out / "model" / "README.md").read_text()
    assert "`timm/test_resnet` trained on labelled" in card
    assert "from weights that first learned from 58 images without labels of mine" in card


def test_a_start_that_made_the_features_worse_is_cautioned_about(rotated):
    report = rotated[0]
    source = {**report.source, "probe": "probe_accuracy", "before": {"probe_accuracy": 0.9}}
    worse = replace(report, source={**source, "metrics": {"probe_accuracy": 0.8}})
    assert any("made a linear probe" in caution for caution in cautions(worse))
    better = replace(report, source={**source, "metrics": {"probe_accuracy": 0.95}})
    assert not any("made a linear probe" in caution for caution in cautions(better))


def test_the_run_of_the_pretext_has_a_report_a_page_and_a_card_of_its_own(rotated):
    source = rotated[1] / "source"
    report = RunReport.load(source)
    assert report.task.is_pretext
    assert report.headline == report.metrics["accuracy"]
    assert report.phases[0].checks["moved"] > 0
    assert report.phases[0].features == "live"
    assert "Learning from rotations" in (source / "report.html").read_text()
    card = (source / "model" / "README.md").read_text()
    assert "learned from images without labels" in card
    assert "It is a start for other tasks. Input" in card


def test_the_model_of_a_pretext_is_a_backbone_and_refuses_to_answer(rotated, place):
    report, out = rotated
    model, image = out / "source" / "model", next((place / "mine").glob("*.png"))
    for ask in (
        lambda: predict(model, [image]),
        lambda: Answers(str(model), [str(image)]),
        lambda: explain(model, [image]),
        lambda: evaluate(model, place / "labelled"),
        lambda: evaluate(out, place / "labelled", compare=model),
        lambda: export(model, out / "model.onnx"),
        lambda: shown_model(out / "source"),
    ):
        with pytest.raises(UserError, match=r"\(rotation\) and has no labels to answer"):
            ask()
    assert embed(model, [image]).features.shape[0] == 1
    assert check_loaders(model) == check_loaders(out / "model")
    assert predict(out, [image])[0].error is None
    card = (model / "README.md").read_text()
    assert "pipeline_tag: image-feature-extraction" in card
    assert "num_classes=0" in card
    assert "predict" not in card.partition("## How to load it")[2].partition("## Limitations")[0]
    assert "| Split | Images |\n" in card


@pytest.mark.parametrize("write", [vit_folder, None])
def test_a_task_with_labels_forgets_that_its_backbone_learned_a_pretext(write, tmp_path):
    start = write(tmp_path / "start") if write else "torchvision/squeezenet1_1"
    learned = load_backbone(
        start, labels_of("rotation", ()), task="rotation", pretrained=False, image_size=32
    )
    save_model(learned, tmp_path / "learned")
    assert load_model(tmp_path / "learned").backbone.task == "rotation"
    model = load_backbone(tmp_path / "learned", ["a", "b"])
    assert model.backbone.task == "classification"
    save_model(model, tmp_path / "model")
    assert load_model(tmp_path / "model").backbone.task == "classification"
    assert "pretext" not in json.loads((tmp_path / "model" / "config.json").read_text())


def test_a_pretext_alone_makes_a_backbone_of_images_without_labels(place, tmp_path):
    text = (
        "task: motion\nbackbone: timm/test_resnet\npretrained: false\n"
        f"data: {{path: {place / 'mine'}, image_size: 32}}\n"
        "phases: [{train: all, epochs: 1, batch_size: 16}]\n"
    )
    report = run(parse_recipe(text, "alone.yaml"), tmp_path / "alone")
    assert report.metrics.keys() >= {"n", "accuracy", "rank", "spread", "before"}
    assert report.source == {}
    made = load_backbone(tmp_path / "alone" / "model", ("cat", "dog"))
    assert made.backbone.weights == "pretrained"
    assert "probe" not in summary(report)


def test_frames_of_videos_teach_what_changes_slowly(place, tmp_path):
    made = recipe(place, "slow")
    report = run(made, tmp_path / "out")
    assert report.source["task"] == "slow"
    assert report.source["held_out"] == 18
    assert report.source["images"]["validation"] > 0


def test_each_seed_learns_first_and_their_report_is_one(place, tmp_path):
    made = replace(recipe(place, "rotation"), seeds=2)
    (phase,) = made.source.phases
    made = replace(made, source=replace(made.source, phases=(replace(phase, batch_size=18),)))
    report = run(made, tmp_path / "out")
    assert report.seeds["seeds"] == [0, 1]
    assert RunReport.load(tmp_path / "out") == report
    assert all((tmp_path / "out" / f"seed-{n}" / "source" / "report.json").exists() for n in (0, 1))
    assert "from rotations" in report_page(report)


def test_what_is_wrong_with_the_images_without_labels_says_whose_settings_mend_it(place, tmp_path):
    shutil.copytree(place / "mine", tmp_path / "bad")
    for number in range(5):
        (tmp_path / "bad" / f"no{number}.png").write_text("no image")
    made = recipe(tmp_path / "bad", "rotation")
    made = replace(made, data=replace(made.data, path=str(place / "labelled")))
    source = replace(made.source, data=replace(made.source.data, path=str(tmp_path / "bad")))
    with pytest.raises(DataError, match=r"^free, source: .* and data.max_bad allows 1"):
        run(replace(made, source=source), tmp_path / "out")


def test_a_source_that_teaches_the_backbone_nothing_is_told_before_it_runs(place):
    made = recipe(place, "contrastive")
    head = replace(made.source.phases[0], train=("head",))
    with pytest.raises(RecipeError, match="free, source: only the head trains, and it is left be"):
        next(plans_of(replace(made, source=replace(made.source, phases=(head,)))))
    norms = replace(head, train=("norms",))
    with pytest.raises(RecipeError, match="free, source: the new head never trains"):
        next(plans_of(replace(made, source=replace(made.source, phases=(norms,)))))


def test_a_plan_tells_both_tasks_and_what_is_left_out(place):
    made = recipe(place, "contrastive")
    first, own = plans_of(made)
    assert first.recipe.task == "contrastive"
    assert first.counts == {"train": 61, "validation": 15}
    assert own.labels == 3
    text = " ".join(plans_text(made, 1, 100).split())
    assert "without labels, 61 train, 15 validation images at 32 px" in text
    assert "new head of" in text
    assert "validation and test images" in text
    once = next(plans_of(recipe(place, "rotation")))
    assert first.phases[0].operations > 1.8 * once.phases[0].operations  # two pictures an image


@pytest.mark.parametrize("pretext", PRETEXTS)
def test_a_pretext_that_is_interrupted_ends_with_every_bit_of_the_unbroken_one(tmp_path, pretext):
    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise RuntimeError("cut off")

    def made(folder, **more):
        model = load_backbone(
            RESNET, labels_of(pretext, ()), task=pretext, pretrained=False, image_size=32
        )
        phase = {"train": "all", "epochs": 2, "lr": 1e-3, "batch_size": 10}
        phase |= {} if TASKS[pretext].moves else {"augment": "standard"}
        sets = {"train_dataset": images(), "eval_dataset": images(12, seed=1)}
        return trainer(folder, [phase], model, checkpoint_seconds=0, **sets, **more)

    unbroken = made(tmp_path / "whole")
    unbroken.train()
    with pytest.raises(RuntimeError, match="cut off"):
        made(tmp_path / "broken", callbacks=[Break()]).train()
    assert list((tmp_path / "broken").rglob("checkpoint-*"))
    resumed = made(tmp_path / "broken")
    resumed.train(resume_from_checkpoint=True)
    one, two = state(unbroken.model), state(resumed.model)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert unbroken.reports[0].metrics == resumed.reports[0].metrics
    assert 0 <= unbroken.reports[0].metrics["accuracy"] <= 1


def test_a_pretrained_start_keeps_what_a_pretext_does_not_train(place, tmp_path, rotated):
    """Only the top of a network adapts to a domain: `start: pretrained` of any backbone."""
    text = RECIPE.replace("timm/test_resnet", f"{rotated[1]}/model\n  start: pretrained")
    text = text.replace("train: all, epochs: 2", "train: last 1 stage, cold_head: true, epochs: 1")
    text = text.replace("PRETEXT", "redundancy").replace("UNLABELLED", str(place / "mine"))
    made = parse_recipe(text.replace("LABELLED", str(place / "labelled")), "free.yaml")
    report = run(made, tmp_path / "out")
    assert report.source["weights"] == "pretrained"
    phase = RunReport.load(tmp_path / "out" / "source").phases[0]
    assert phase.checks["still"] > 0
    assert phase.features == "live"


def test_a_run_learns_from_images_without_labels_beside_labelled_ones_and_tells(place, tmp_path):
    text = (
        "backbone: timm/test_resnet\npretrained: false\n"
        f"data: {{path: {place / 'labelled'}, image_size: 32, validation: 0.25, test: 0.25}}\n"
        "phases:\n  - {train: head, solve: lbfgs}\n"
        "  - {train: all, epochs: 1, batch_size: 8, augment: light, best: accuracy,\n"
        "     pseudo: {per_image: 2, confidence: 0.5}}\n"
    )
    made = parse_recipe(text, "pseudo.yaml", [f"source.data.path={place / 'mine'}"])
    assert made.data.unlabelled == str(place / "mine")
    (planned,) = plans_of(made)
    assert planned.phases[1].operations > 4 * planned.phases[0].operations
    assert "76 images without labels" in plans_text(made, 1, 200)
    report = run(made, tmp_path / "out")
    facts = report.data["unlabelled"]
    assert (facts["images"], facts["held_out"]) == (58, 18)
    said = "Phase all also learned from 58 images without labels of mine"
    assert said in report_page(report)
    assert said in summary(report)
    assert RunReport.load(tmp_path / "out") == report
    with pytest.raises(UserError, match="name a folder with --unlabelled"):
        next(plans_of(parse_recipe(text, "pseudo.yaml")))
