"""Recipes: what is read is what was written, and every mistake is named with its line."""

import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from hf_transfer.base.errors import RecipeError, UserError
from hf_transfer.recipe.load import asked, dump_recipe, load_recipe, parse_phase, parse_recipe
from hf_transfer.recipe.shipped import shipped_recipes
from hf_transfer.recipe.specs import (
    AUGMENTS,
    Augment,
    CompareSpec,
    DataSpec,
    GradualSpec,
    HeadSpec,
    LettersSpec,
    PhaseSpec,
    Pseudo,
    Recipe,
    SourceSpec,
    Stop,
)

HEAD = "phases: [{train: head, epochs: 5}]\n"


def phase(text: str, *overrides: str) -> PhaseSpec | GradualSpec:
    """Return the one phase of a recipe whose phase holds this text."""
    return parse_recipe(f"phases:\n  - {{{text}}}\n", "a.yaml", overrides).phases[0]


def problems(text: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "a.yaml", overrides)
    return caught.value.problems


# --- what is read ----------------------------------------------------------------------------


def test_a_recipe_is_read_as_written():
    recipe = parse_recipe(
        """
        backbone: timm/resnet50.a1_in1k
        data: {path: flowers, validation: 0.2, image_size: 224}
        phases:
          - {train: head, epochs: 10, lr: 1e-3}
          - {train: last 1 stage, epochs: 5, lr: 1e-4}
          - {train: all, epochs: 10, lr: 5e-5, layer_decay: 0.75, stop: {patience: 3}}
        """.replace("\n        ", "\n"),
        "folder/lp_ft.yaml",
    )
    assert recipe == Recipe(
        name="lp_ft",
        backbone="timm/resnet50.a1_in1k",
        data=DataSpec(path="flowers", validation=0.2, image_size=224),
        phases=(
            PhaseSpec("head", epochs=10.0, lr=1e-3),
            PhaseSpec("last 1 stage", epochs=5.0, lr=1e-4),
            PhaseSpec("all", epochs=10.0, lr=5e-5, layer_decay=0.75, stop=Stop(patience=3)),
        ),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: head, epochs: 1, lr: 1e-3", {"lr": 1e-3}),
        ("train: head, epochs: 1, lr: 1E-3", {"lr": 1e-3}),
        ("train: head, epochs: 1, lr: .5", {"lr": 0.5}),
        ("train: head, epochs: 0.5", {"epochs": 0.5}),
        ("train: head, epochs: null, steps: 30", {"epochs": None, "steps": 30}),
        ("train: [head, norms], epochs: 1", {"train": ("head", "norms")}),
        ("train: head, epochs: 1, stop: rises", {"stop": Stop("loss", 1, 0.0)}),
        ("train: head, epochs: 1, stop: {metric: accuracy}", {"stop": Stop("accuracy", 3, 0.0)}),
        ("train: head, epochs: 1, augment: none", {"augment": Augment()}),
        ("train: head, epochs: 1, augment: light", {"augment": AUGMENTS["light"]}),
        ("train: head, epochs: 1, augment: {crop: [0.5, 1]}", {"augment": Augment((0.5, 1.0))}),
        ("train: head, epochs: 1, lrs: {head: 1e-3}", {"lrs": (("head", 1e-3),)}),
        ("train: head, epochs: 1, lr: [1e-5, 1e-3]", {"lr": (1e-5, 1e-3), "head_lr": 1e-3}),
        ("train: head, epochs: 1, warmup: 0.1", {"warmup": 0.1}),
        ("train: head, epochs: 1, warmup: 100", {"warmup": 100}),
        ("train: head, epochs: 1, best: last", {"best": "last"}),
        ("train: head, epochs: 1, name: 'yes'", {"name": "yes"}),
        ("train: no, epochs: 1", {"train": "no"}),  # YAML 1.1 would make it false
        ("train: head, solve: lbfgs", {"solve": "lbfgs"}),
    ],
)
def test_a_phase_is_read_as_written(text, expected):
    read = phase(text)
    assert {key: getattr(read, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("step", "count", "grain"),
    [("1 stage", 1, "stages"), ("2 blocks", 2, "blocks"), ("25%", 25, "%")],
)
def test_gradual_is_kept_as_it_is_written(step, count, grain):
    read = phase(f"gradual: {step}, epochs: 3, lr_drop: 0.3, thaws: 2")
    assert read == GradualSpec(step, 0.3, 2, epochs=3.0)
    assert (read.count, read.grain) == (count, grain)


def test_a_phase_knows_its_line_and_is_equal_without_it():
    recipe = parse_recipe(
        "phases:\n- train: head\n  epochs: 1\n- {train: all, epochs: 1}\n", "a.yaml"
    )
    assert [spec.place for spec in recipe.phases] == ["a.yaml:2", "a.yaml:4"]
    assert recipe.phases[0] == PhaseSpec("head", epochs=1.0)


# --- there and back --------------------------------------------------------------------------

EVERYTHING = Recipe(
    name="1e-3",
    backbone="timm/a: b",
    weights="~",
    head=HeadSpec(2),
    data=DataSpec("C:\\x #1", 0.1, 0.2, 96, 5, 6, "yes", "null", "0x10", 0.5, 3),
    phases=(
        PhaseSpec(
            ("head", "not *.bias"),
            name="né",
            epochs=1.5,
            lr=1e-5,
            layer_decay=0.5,
            lrs=(("head", 1e-6),),
        ),
        PhaseSpec("50%", steps=7, lr=(1e-7, 1e-2), weight_decay=0.0),
        PhaseSpec("all", epochs=1e6, optimizer="sgd", momentum=0.9, schedule="linear"),
        PhaseSpec("all", epochs=1.0, min_steps=9, warmup=10.0, batch_size=1, accumulate=2),
        PhaseSpec("all", epochs=1.0, augment=Augment((0.1, 0.2), True, True, 0.1, 0.2, 45.0)),
        PhaseSpec("all", epochs=1.0, label_smoothing=0.1, mixup=0.2, cutmix=1.0),
        PhaseSpec("all", epochs=1.0, stop=Stop("accuracy", 2, 1e-4), best="macro_f1", l2_sp=0.01),
        PhaseSpec("all", epochs=1.0, max_grad_norm=0.0, features="live", still_norms=True),
        PhaseSpec("all", epochs=1.0, pseudo=Pseudo(3, 0.9, 0.5, Augment(erase=0.2))),
        PhaseSpec("lora(r=4)", epochs=1.0, keep_adapters=True, sampler="balanced"),
        PhaseSpec("all", epochs=1.0, reestimate_norms=True),
        PhaseSpec("all", epochs=1.0, reestimate_norms=512, on_nan="rollback"),
        PhaseSpec(
            "head",
            solve="lbfgs",
            views=3,
            feature_precision="fp16",
            augment=AUGMENTS["standard"],
            cold_head=True,
        ),
        GradualSpec("2 blocks", 0.5, 4, epochs=2.0),
        GradualSpec("33%", epochs=2.0),
    ),
    loss="balanced",
    metrics=("f1", "./mine.py"),
    seed=7,
    seeds=3,
    precision="auto",
    workers=2,
    sync_batchnorm=True,
    compile=True,
    gradient_checkpointing=True,
    compare=CompareSpec((2, 5), 4),
)
SOURCED = replace(
    EVERYTHING,
    backbone=None,
    weights=None,
    source=SourceSpec("timm/b", (PhaseSpec("all", epochs=1.0),), letters=LettersSpec(3, 99)),
)
OTHERS = ("label_columns", "channels", "fit", "group", "window", "frame", "fold", "unlabelled")
NUMBERS = replace(
    EVERYTHING,
    task="regression",
    data=DataSpec(
        label_columns=("x", "1e-3"),
        channels=2,
        fit="pad",
        group=r"^(\d+)_",
        window=(40.0, 400.0),
        frame=2,
        fold=(2, 5),
    ),
    phases=(PhaseSpec("all", epochs=1.0, best="r2"),),
    loss="squared_error",
    metrics=(),
    compare=None,
)
SKEWED = replace(
    EVERYTHING,
    phases=EVERYTHING.phases[:2],
    loss="focal",
    class_weights=(("null", 2.0), ("1e-3", 0.5)),
)
PSEUDO = replace(EVERYTHING, data=DataSpec("x", unlabelled="~/1e3"))


@pytest.mark.parametrize("recipe", [EVERYTHING, SOURCED, NUMBERS, SKEWED, PSEUDO])
def test_a_recipe_that_is_written_and_read_is_the_same(recipe):
    assert parse_recipe(dump_recipe(recipe), "other.yaml") == recipe


def test_every_setting_of_a_phase_and_of_data_differs_from_its_default_somewhere_above():
    own = {spec.name for spec in fields(PhaseSpec)} - {"place"}
    specs = [spec for spec in EVERYTHING.phases if isinstance(spec, PhaseSpec)]
    plain = PhaseSpec("head", epochs=3)
    assert {key for key in own if any(getattr(s, key) != getattr(plain, key) for s in specs)} == own
    plain = DataSpec()
    names = [field.name for field in fields(DataSpec)]
    kept = [name for name in names if getattr(EVERYTHING.data, name) == getattr(plain, name)]
    assert kept == [*OTHERS]  # which NUMBERS has
    assert all(getattr(NUMBERS.data, name) for name in OTHERS[:-1])
    assert PSEUDO.data.unlabelled


def test_what_is_default_is_not_written():
    assert dump_recipe(parse_recipe(HEAD, "a.yaml")) == (
        "name: a\nphases:\n- train: head\n  epochs: 5\n"
    )


# --- mistakes --------------------------------------------------------------------------------

BAD = {
    # text: (line, words of the message)
    "phases: [": (1, "this is not YAML"),
    "phases:\n\t- {}": (2, "this is not YAML"),
    "": (1, "the file is empty"),
    "# nothing\n": (1, "the file is empty"),
    "- a\n": (1, "the recipe must be a mapping"),
    "hello": (1, "the recipe must be a mapping"),
    "a: &x 1\n" + HEAD: (1, "anchors (&)"),
    HEAD + "metrics: *x\n": (2, "aliases (*)"),
    "seed: !!python/name:os.system 1\n" + HEAD: (1, "tags (!)"),
    HEAD + "---\n" + HEAD: (2, "document marks (---)"),
    HEAD + "[a]: 1\n": (2, "a key must be a single word"),
    "[" * 800: (1, "nested too deeply"),
    "seed: 1\n": (1, "the recipe has no phases; add it"),
    "phases: []\n": (1, "phases must be a list of phases such as {train: head"),
    "phases: {train: head, epochs: 1}\n": (1, "must be a list of phases"),
    "phases: [head]\n": (1, "phases[0] must be a mapping such as {train: head, epochs: 10}, got"),
    HEAD + "speed: 3\n": (2, "unknown key 'speed' in the recipe; nearest: seed, seeds"),
    HEAD + "zzz: 3\n": (2, "the keys are name, phases, task, backbone"),
    HEAD + "seed: 1\nseed: 2\n": (3, "seed is there twice, first at a.yaml:2"),
    HEAD + "seed: one\n": (2, "seed must be a whole number from 0 to 2,147,483,647, got 'one'"),
    HEAD + "seed: 1.5\n": (2, "seed must be a whole number"),
    HEAD + "seed: -1\n": (2, "got -1"),
    HEAD + "seeds: 0\n": (2, "seeds must be a whole number from 1 to 1,000, got 0"),
    HEAD + "seed: true\n": (2, "got True"),
    HEAD + "pretrained: yes\n": (2, "pretrained must be true or false, got 'yes'"),
    HEAD + "loss: hinge\n": (2, "squared_error or pretext, got 'hinge'"),
    HEAD + "loss: balanced\nclass_weights: sqrt\n": (3, "cannot be combined with loss: balanced"),
    HEAD + "class_weights: [1, 2]\n": (
        2, "class_weights must be sqrt or a mapping such as {daisy: 2, rose: 0.5}, got a list of"),
    HEAD + "class_weights: {daisy: -2}\n": (2, "daisy must be a number from 0 to 1,000,000, got -"),
    HEAD + "task: multi_label\nloss: logit_adjusted\n": (3, "write balanced or focal"),
    "loss: focal\nphases: [{train: head, solve: lbfgs}]\n": (2, "lbfgs minimises cross-entropy"),
    HEAD + "loss: pretext\n": (2, "task: classification has the loss cross_entropy"),
    HEAD + "task: rotation\nloss: balanced\n": (3, "task: rotation has a loss of its own"),
    "phases: [{train: all, epochs: 1}]\ntask: contrastive\n": (1, "add augment: standard"),
    "phases: [{train: all, epochs: 1, augment: light}]\ntask: motion\n": (
        1, "motion moves its pictures itself; remove augment"),
    "phases: [{train: head, epochs: 1, features: cached}]\ntask: rotation\n": (
        1, "features: cached is for images that stay as they are"),
    HEAD + "source:\n  pretext: rotation\n  backbone: x\n  phases: [{train: all, epochs: 1}]\n": (
        2, "pretext: rotation needs images; add data: {path: FOLDER}"),
    HEAD + "source: {pretext: rotation, letters: {}, backbone: x, "
    "phases: [{train: all, steps: 1}]}\n": (
        2, "a pretext learns from the images of data; remove letters"),
    HEAD + "source: {pretext: jigsaw, backbone: x, phases: [{train: all, steps: 1}]}\n": (
        2, "pretext must be rotation, contrastive"),
    HEAD + "task: detection\n": (2, "task must be classification, multi_label, regression"),
    HEAD + "loss: squared_error\n": (2, "the loss of task: classification is cross_entropy"),
    HEAD + "task: regression\nloss: balanced\n": (3, "balanced is for labels, and a regression"),
    HEAD + "data: {label_columns: [a]}\n": (2, "for task: multi_label or regression"),
    HEAD + "task: regression\ndata: {train_per_class: 3}\n": (3, "combined with task: regr"),
    HEAD + "task: multi_label\ncompare: {per_class: [2]}\n": (3, "compare is for task: class"),
    "task: rotation\nphases: [{train: head, solve: lbfgs}]\n": (2, "for labels and numbers, not"),
    "task: regression\nphases: [{train: head, epochs: 1, mixup: 1}]\n": (2, "mixup is for labels"),
    "task: multi_label\nphases: [{train: head, epochs: 1, best: accuracy}]\n": (
        2,
        "best: there is no metric 'accuracy'; nearest: auroc",
    ),
    "metrics: [mcnemar]\nphases: [{train: head, epochs: 1, best: p}]\n": (
        2,
        "best: whether more or less of 'p' is better is not known",
    ),
    HEAD + "compile: maybe\n": (2, "compile must be true or false, got 'maybe'"),
    HEAD + "precision: int8\n": (2, "fp32, bf16, fp16 or auto"),
    HEAD + "backbone: 50\n": (2, "backbone must be a text, got 50; write it in quotes: '50'"),
    HEAD + "head: 2\n": (2, "head must be a mapping such as {replace: …}"),
    HEAD + "head: {replace: 0}\n": (2, "replace must be a whole number from 1"),
    HEAD + "data: flowers\n": (2, "data must be a mapping such as {path: …}, got 'flowers'"),
    HEAD + "data:\n  folder: x\n": (3, "unknown key 'folder' in data"),
    HEAD + "data: {validation: 1}\n": (2, "validation must be a number at least 0 and below 1"),
    HEAD + "data: {validation: 0.6, test: 0.5}\n": (2, "leave nothing to train on"),
    HEAD + "data: {image_size: 3}\n": (2, "image_size must be a whole number from 8 to 4,096"),
    HEAD + "weights: x\npretrained: false\n": (2, "weights are not loaded with pretrained: false"),
    HEAD + "metrics: f1\n": (2, "metrics must be a list of metrics"),
    HEAD + "source: {backbone: x}\n": (2, "source has no phases"),
    HEAD + "source:\n  backbone: x\n  phases: [{train: all, epochs: 1}]\n": (
        2, "source needs one of data and letters"),
    HEAD + "backbone: y\nsource: {backbone: x, letters: {}, phases: [{train: all, steps: 1}]}\n": (
        2, "write source.backbone instead"),
    HEAD + "compare: {seeds: 2}\n": (2, "compare has no per_class"),
    HEAD + "compare: {per_class: 2}\n": (2, "per_class must be a list of whole numbers"),
}  # fmt: skip

BAD_PHASES = {
    "epochs: 1": "phases[0] has no train; add it",
    "train: head": "a phase needs epochs or steps",
    "train: head, epochs: 1, steps: 1": "either epochs or steps, not both",
    "train: 3, epochs: 1": "train must be a text or a list of selectors, got 3",
    "train: [], epochs: 1": "train must be a text or a list of selectors, got an empty list",
    "train: {head: 1}, epochs: 1": "a list of selectors, got a mapping",
    "train: head, epoch: 1": "unknown key 'epoch' in phases[0]; nearest: epochs",
    "train: head, epochs: 0": "epochs must be a number above 0 and at most 1,000,000, got 0",
    "train: head, epochs: ten": "epochs must be a number above 0 and at most 1,000,000, got 'ten'",
    "train: head, epochs: .inf": "at most 1,000,000, got '.inf'",
    "train: head, steps: 1.5": "steps must be a whole number from 1 to 1,000,000,000, got 1.5",
    "train: head, epochs: 1, lr: 0": "lr must be a number above 0 and at most 1,000,000, or two",
    "train: head, epochs: 1, lr:": "of the last; or auto, got nothing",
    "train: head, epochs: 1, lr: [1e-3]": "that of the last; or auto, got a list of 1",
    "train: head, epochs: 1, lr: [1e-5, 1e-3], layer_decay: 0.5": "both set the rate",
    "train: head, epochs: 1, layer_decay: 1.2": "above 0 and at most 1, got 1.2",
    "train: head, epochs: 1, lrs: 3": "lrs must be a mapping",
    "train: head, epochs: 1, lrs: [1, 2]": "lrs must be a mapping such as {head: 1e-3, last 1 sta",
    "train: head, epochs: 1, lrs: {head: -1}": "head must be a number above 0",
    "train: head, epochs: 1, optimizer: adamm": "optimizer must be adamw, sgd",
    "train: head, epochs: 1, momentum: 0.9": "momentum does nothing in adamw",
    "train: head, epochs: 1, schedule: cosin": "schedule must be constant",
    "train: head, epochs: 1, schedule: constant, warmup: 0.1": "write schedule: constant_with_war",
    "train: head, epochs: 1, schedule: constant_with_warmup": "needs warmup",
    "train: head, epochs: 1, warmup: 1.5": "below 1 or a whole number of steps, got 1.5",
    "train: head, epochs: 1, batch_size: 0": "batch_size must be a whole number from 1 to",
    "train: head, epochs: 1, augment: wild": "none, light, standard or a mapping",
    "train: head, epochs: 1, augment: {crop: [1, 0.5]}": "write [0.5, 1]",
    "train: head, epochs: 1, augment: {crop: 0.5}": "crop must be two numbers",
    "train: head, epochs: 1, augment: {flop: true}": "unknown key 'flop' in augment; nearest: flip",
    "train: head, epochs: 1, label_smoothing: 1": "at least 0 and below 1",
    "train: head, epochs: 1, stop: never": "stop must be rises",
    "train: head, epochs: 1, stop: {patience: 0}": "patience must be a whole number from 1 to",
    "train: head, epochs: 1, stop: {metric: accurracy}": "nearest: accuracy",
    "train: head, epochs: 1, best: beauty": "best: there is no metric 'beauty'",
    "train: head, epochs: 1, features: frozen": "features must be auto, cached or live",
    "train: head, epochs: 1, views: 4": "would be the same pixels each time",
    "train: head, epochs: 1, views: 4, augment: light, features: live": "views are for cached",
    "train: head, epochs: 1, features: live, feature_precision: fp16": "is for cached features",
    "train: head, epochs: 1, mixup: 1, features: cached": "mix pixels, not features",
    "train: head, solve: lbfgs, epochs: 1": "converges and does not use epochs; remove it",
    "train: head, solve: lbfgs, features: live": "works on cached features",
    "train: head, solve: lbfgs, mixup: 1, lr: 1e-3, best: loss": "does not use lr, mixup, best;",
    "train: head, solve: lbfgs, on_nan: rollback, stop: rises": "does not use stop, on_nan;",
    "train: head, solve: newton": "solve must be lbfgs",
    "train: head, epochs: 1, reestimate_norms: 1": "must be true, false or a number of images",
    "train: lora(r=8, alpha=16), epochs: 1": "unknown key 'alpha=16)' in phases[0]; write 'lora(",
    "train: head, epochs: 1, still_norms: 1": "still_norms must be true or false, got 1",
    "gradual: 0 stages, epochs: 1": "gradual must be a step such as 1 stage",
    "gradual: 200%, epochs: 1": "gradual must be a step",
    "gradual: 1 stage, train: all, epochs: 1": "unknown key 'train'",
    "gradual: 1 stage": "a phase needs epochs or steps",
    "train: head, steps: 5, min_steps: 9": "min_steps is for a length in epochs",
    "train: head, solve: lbfgs, min_steps: 9": "does not use min_steps",
    "gradual: 1 stage, epochs: 1, lr_drop: 2": "lr_drop must be a number above 0 and at most 1",
    "gradual: 1 stage, epochs: 1, lrs: {head: 1}": "cannot be combined with lrs; use layer_decay",
    "gradual: 1 stage, solve: lbfgs": "put {train: head, solve: lbfgs} before it",
    "gradual: 1 stage, epochs: 1, cold_head: true": "it starts with the head",
    "train: head, epochs: 1, pseudo: {confidence: 2}": "confidence must be a number above 0 and",
}


def test_the_backbone_that_is_given_is_that_of_the_source_in_a_recipe_that_trains_one_first():
    phases = "phases: [{train: all, steps: 1}]"
    text = f"{HEAD}source: {{pretext: rotation, backbone: x, data: {{}}, {phases}}}"
    given = asked(parse_recipe(text, "a.yaml"), backbone="timm/y", unlabelled="some/images")
    assert (given.backbone, given.source.backbone) == (None, "timm/y")
    assert given.source.data.path == "some/images"
    assert asked(parse_recipe(HEAD, "a.yaml"), backbone="timm/y").backbone == "timm/y"
    with pytest.raises(RecipeError, match="learns nothing from images without labels"):
        asked("lp_ft", unlabelled="some/images")
    alone = "task: rotation\nbackbone: x\nphases: [{train: all, steps: 1}]"
    with pytest.raises(RecipeError, match="task: rotation learns from the images of --data; name"):
        asked(parse_recipe(alone, "a.yaml"), unlabelled="some/images")


@pytest.mark.parametrize(
    "setting",
    ["train_per_class=5", "label_column=x", "label_columns=[x]", "config=x", "unlabelled=y"],
)
def test_what_is_for_labels_is_told_in_the_data_of_a_pretext(setting):
    key, phases = setting.partition("=")[0], "phases: [{train: all, steps: 1}]"
    text = f"{HEAD}source: {{pretext: rotation, backbone: x, data: {{path: y}}, {phases}}}"
    words = f"--set source.data.{key}.*: {key} is for images with labels, not for rotation; remove"
    with pytest.raises(RecipeError, match=words) as error:
        parse_recipe(text, "a.yaml", [f"source.data.{setting}"])
    assert len(error.value.problems) == 1
    alone = f"task: rotation\nbackbone: x\ndata: {{path: y}}\n{phases}"
    with pytest.raises(RecipeError, match=f"{key} is for images with labels") as error:
        parse_recipe(alone, "a.yaml", [f"data.{setting}"])
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("text", BAD)
def test_a_mistake_is_named_with_its_line(text):
    line, words = BAD[text]
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith(f"a.yaml:{line}: ")
    assert words in found[0]
    assert "\n" not in found[0]


@pytest.mark.parametrize("text", BAD_PHASES)
def test_a_mistake_in_a_phase_is_named_with_its_line(text):
    found = problems(f"seed: 1\nphases:\n  - {{{text}}}\n")
    assert len(found) == 1
    assert found[0].startswith("a.yaml:3: ")
    assert BAD_PHASES[text] in found[0]


def test_all_problems_are_named_at_once_in_the_order_of_their_lines():
    found = problems(
        "phases:\n"
        "  - {train: head, epochs: -1}\n"
        "  - train: all\n"
        "    lr: fast\n"
        "    speed: 3\n"
        "data: {validation: 2}\n"
        "colour: red\n"
    )
    assert [text.split(":")[1] for text in found] == ["2", "4", "5", "6", "7"]


def test_the_text_of_the_error_has_a_line_for_each_problem():
    with pytest.raises(RecipeError) as caught:
        parse_recipe(HEAD + "a: 1\nb: 2\n", "a.yaml")
    assert str(caught.value).splitlines() == list(caught.value.problems)
    assert len(caught.value.problems) == 2


# --- overrides -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("seed=3", lambda recipe: recipe.seed == 3),
        ("data.path=1e-3", lambda recipe: recipe.data.path == "1e-3"),
        ("data.path=C:\\a: b #c", lambda recipe: recipe.data.path == "C:\\a: b #c"),
        ('data.path="a=b"', lambda recipe: recipe.data.path == "a=b"),
        ("data.path=null", lambda recipe: recipe.data.path is None),
        ("phases.0.lr=1e-4", lambda recipe: recipe.phases[0].lr == 1e-4),
        ("phases.*.epochs=1", lambda recipe: [p.epochs for p in recipe.phases] == [1.0, 1.0]),
        ("phases.1.stop.patience=9", lambda recipe: recipe.phases[1].stop == Stop(patience=9)),
        ("phases.1.train=[all, not stem]", lambda recipe: recipe.phases[1].train[1] == "not stem"),
        ("phases=[{train: all, steps: 2}]", lambda recipe: recipe.phases[0].steps == 2),
        ("phases.1.augment={flip: true}", lambda recipe: recipe.phases[1].augment.flip),
        ("backbone=timm/vgg16", lambda recipe: recipe.backbone == "timm/vgg16"),
    ],
)
def test_an_override_sets_what_it_names_and_nothing_else(setting, read):
    text = "phases:\n- {train: head, epochs: 5}\n- {train: all, epochs: 3}\n"
    recipe = parse_recipe(text, "a.yaml", [setting])
    assert read(recipe)
    assert not read(parse_recipe(text, "a.yaml")) or setting == "data.path=null"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("data..path=x", "write KEY=VALUE"),
        ("sed=3", "unknown key 'sed' in the recipe; nearest: seed"),
        ("batch_size=3", "in the recipe; it is a key of a phase: phases.0.batch_size"),
        ("data.lr=3", "in data; it is a key of a phase: phases.0.lr"),
        ("image_size=96", "in the recipe; it is a key of data: data.image_size"),
        ("phases.0.seed=3", "in phases[0]; it is a key of the recipe itself: seed"),
        ("phases.0.epoch=3", "unknown key 'epoch' in phases[0]; nearest: epochs"),
        ("phases.1.epochs=3", "there is no phases.1; the only number is 0"),
        ("phases.first.epochs=3", "there is no phases.first"),
        ("phases.0.train.x=3", "phases.0.train is 'head' and has no keys to set"),
        ("phases.0.lr=fast", "of the last; or auto, got 'fast'"),
        ("phases.0.steps=3", "either epochs or steps"),
        ("seed=", "seed must be a whole number"),
        ("metrics=[3, auroc]", "metrics[0] must be a text, got 3"),
        ("phases=3", "phases must be a list"),
    ],
)
def test_a_mistake_in_an_override_is_named(setting, words):
    (found,) = problems(HEAD, setting)
    assert words in found
    assert found.startswith(f"--set {setting}: ") or setting == "phases.0.steps=3"


# --- files, Python, import -------------------------------------------------------------------


def test_a_recipe_file_is_found_by_path_and_named_after_its_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD)
    assert load_recipe(str(path)).name == "mine"
    path.write_text("phases: 3\n")
    with pytest.raises(RecipeError, match=r"^mine\.yaml:1: "):
        load_recipe(str(path))


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no recipe 'lp_tf'; nearest: lp_ft; give a path"):
        load_recipe("lp_tf")
    with pytest.raises(UserError, match="cannot be read: it is a folder"):
        load_recipe(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="cannot be read: it is not a regular file"):
        load_recipe(str(tmp_path / "pipe"))  # and nobody waits for who writes into it
    (tmp_path / "word.yaml").write_text("hello")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "word.yaml"), ["seed=1", "data.path=x"])
    assert [line.partition(",")[0] for line in caught.value.problems] == [
        "word.yaml:1: the recipe must be a mapping such as {phases: …}"
    ]
    (tmp_path / "photo.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        load_recipe(str(tmp_path / "photo.yaml"))
    (tmp_path / "odd.yaml").write_text("seed: \x07\n")
    with pytest.raises(RecipeError, match="odd.yaml:1"):
        load_recipe(str(tmp_path / "odd.yaml"))


def test_shipped_recipes_are_found_by_name():
    assert load_recipe("lp_ft").name == "lp_ft"
    assert list(shipped_recipes()) == sorted(shipped_recipes())


def test_a_phase_from_python_is_that_of_a_recipe_and_takes_objects_and_any_optimizer():
    values = {"train": ("head", "norms"), "epochs": 3, "stop": Stop(patience=2)}
    read = parse_phase({**values, "augment": Augment(flip=True), "optimizer": "lion_32bit"})
    assert read == PhaseSpec(
        ("head", "norms"),
        epochs=3.0,
        stop=Stop(patience=2),
        augment=Augment(flip=True),
        optimizer="lion_32bit",
    )
    assert isinstance(parse_phase({"gradual": "1 stage", "epochs": 1}), GradualSpec)
    with pytest.raises(RecipeError, match=r"^phase: unknown key 'trian'"):
        parse_phase({"trian": "head", "train": "head", "epochs": 1})


def test_a_spec_made_in_python_is_checked_as_one_in_a_file_is():
    assert DataSpec(Path("photos")).path == "photos"
    assert PhaseSpec(["head", "norms"], epochs=1).train == ("head", "norms")
    with pytest.raises(RecipeError) as caught:
        PhaseSpec("head", epochs=-1, lr=10**500, name=3, velocity=3)
    assert [text.partition(" and ")[0].partition(",")[0] for text in caught.value.problems] == [
        "PhaseSpec: name must be a text",
        "PhaseSpec: epochs must be a number above 0",
        "PhaseSpec: lr must be a number above 0",
        "PhaseSpec: unknown argument 'velocity'; the keys are name",
    ]
    with pytest.raises(RecipeError, match="^PhaseSpec: a phase needs epochs or steps"):
        PhaseSpec("head")
    with pytest.raises(RecipeError, match=r"^PhaseSpec: a phase has either epochs or steps"):
        replace(PhaseSpec("head", epochs=1), steps=3)
    with pytest.raises(TypeError, match="PhaseSpec takes only train by position"):
        PhaseSpec("head", "mine")


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "seed: " + "9" * 5000 + "\n",
        HEAD + "seed: 1e308\n",
        "phases: [{train: head, epochs: 1e308}]\n",
        "phases: [{train: head, epochs: 1" + "0" * 400 + "}]\n",
        "phases: [{train: head, steps: 1e9}]\n",
        HEAD + "data: " + "[" * 90 + "]" * 90 + "\n",
        HEAD + "data: " + "{a: " * 90 + "1" + "}" * 90 + "\n",
        HEAD + 'name: "a\\0b"\n',
        HEAD + 'name: "\\uD800"\n',
        "phases: [{train: head, epochs: 1, lr: [" + "1, " * 9999 + "1]}]\n",
    ],
    ids=lambda text: text[:40],
)
def test_absurd_values_are_one_line_each(text):
    (found,) = problems(text)
    assert found.startswith("a.yaml:")
    assert len(found) < 300


def test_a_recipe_of_megabytes_is_not_read(tmp_path):
    (tmp_path / "big.yaml").write_text(HEAD + "#" * 1_000_001)
    with pytest.raises(UserError, match="over a megabyte"):
        load_recipe(tmp_path / "big.yaml")


@pytest.mark.parametrize("name", ["~nosuchuser/x.yaml", "a\0b", "x" * 5000, "\udcff"])
def test_a_name_that_no_file_can_have_is_no_recipe(name):
    with pytest.raises(UserError, match="there is no recipe|holds a NUL"):
        load_recipe(name)


def test_the_home_folder_may_be_missing(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(UserError, match="there is no recipe"):
        load_recipe("~/x.yaml")


def test_recipes_import_neither_torch_nor_numpy():
    code = (
        "import sys, hf_transfer.recipe.load\n"
        "from hf_transfer.planning import phases, plan, plan_text, rates\n"
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_a_phase_that_an_override_changed_names_both_places():
    recipe = parse_recipe(HEAD, "a.yaml", ["phases.0.train=heads", "seed=3"])
    assert recipe.phases[0].place.endswith(", --set phases.0.train=heads")
    assert recipe.phases[0].place.startswith("a.yaml:")
