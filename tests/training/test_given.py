"""What a user gives a Trainer may have any usual form; what cannot be used is named in a line."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from small import (
    ALL,
    COLD,
    HEAD,
    NAMES,
    RESNET,
    Pixels,
    arguments,
    changed,
    images,
    network,
    state,
    trained,
    trainer,
)
from torch import nn
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import hf_transfer
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import UserError
from hf_transfer.data.image_set import ImageSet
from hf_transfer.recipe.specs import PhaseSpec
from hf_transfer.training.trainer import TransferTrainer

DATA = {"train_dataset": images(), "eval_dataset": images(6, seed=1)}


@pytest.mark.parametrize("form", [str, Path])
def test_a_models_folder_is_loaded_for_the_labels_of_the_training_set(tmp_path, form):
    save_model(network(), tmp_path / "model")
    made = TransferTrainer(form(tmp_path / "model"), arguments(tmp_path / "run"), [HEAD], **DATA)
    assert made.backbone.labels == NAMES
    made.train()


def test_a_models_name_needs_labels_that_have_names(tmp_path):
    own = Pixels(images(), network())
    with pytest.raises(UserError, match="timm/resnet10t: the training set does not name its label"):
        TransferTrainer("timm/resnet10t", arguments(tmp_path), [HEAD], train_dataset=own)
    with pytest.raises(UserError, match="model is None; pass what load_backbone returns"):
        TransferTrainer(None, arguments(tmp_path), [HEAD], **DATA)
    with pytest.raises(UserError, match="model is of type dict"):
        TransferTrainer({}, arguments(tmp_path), [HEAD], **DATA)


@pytest.mark.parametrize("phases", [HEAD, PhaseSpec("head", epochs=1)])
def test_a_single_phase_stands_for_itself(tmp_path, phases):
    assert [phase.name for phase in trainer(tmp_path, phases).phases] == ["head"]


def test_the_name_or_the_file_of_a_recipe_stands_for_its_phases(tmp_path):
    named = trainer(tmp_path, "lp_ft").phases
    assert [phase.name for phase in named][:1] == ["head"]
    (tmp_path / "own.yaml").write_text("phases: [{train: head, epochs: 1}]\n")
    assert len(trainer(tmp_path, tmp_path / "own.yaml").phases) == 1
    with pytest.raises(UserError, match="lp_fd.*lp_ft"):
        trainer(tmp_path, "lp_fd")
    with pytest.raises(UserError, match="phases are of type int; pass a list"):
        trainer(tmp_path, 3)
    with pytest.raises(UserError, match="phase 2 is of type str; write {'train': 'head'"):
        trainer(tmp_path, [HEAD, "all"])


def test_a_model_may_be_made_by_model_init(tmp_path):
    made = TransferTrainer(None, arguments(tmp_path), [HEAD], model_init=network, **DATA)
    assert made.backbone.labels == NAMES
    made.train()
    with pytest.raises(UserError, match="pass it or model"):
        TransferTrainer(network(), arguments(tmp_path), [HEAD], model_init=network, **DATA)


def test_arguments_of_another_type_are_named(tmp_path):
    with pytest.raises(UserError, match=r"args are of type str; pass transformers' TrainingArgum"):
        TransferTrainer(network(), "run", [HEAD], **DATA)
    with pytest.raises(UserError, match="groups are of type list; pass layers by name"):
        TransferTrainer(network(), arguments(tmp_path), [HEAD], groups=["a"], **DATA)
    with pytest.raises(UserError, match="resume_from_checkpoint is of type int"):
        trainer(tmp_path, [HEAD]).train(resume_from_checkpoint=3)


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor])
def test_class_weights_are_taken_from_lists_and_arrays(tmp_path, form):
    ends = [
        state(trained(tmp_path, [COLD], class_weights=weights, eval_dataset=None).model)
        for weights in (form([2.0, 0.5, 1.0]), torch.tensor([2.0, 0.5, 1.0]))
    ]
    assert changed(*ends) == set()


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0]])
def test_class_weights_that_fit_no_labels_are_refused(tmp_path, weights):
    with pytest.raises(UserError, match="class_weights must be 3 numbers of at least 0"):
        trainer(tmp_path, [HEAD], class_weights=weights)
    with pytest.raises(UserError, match="class_weights are of type set"):
        trainer(tmp_path, [HEAD], class_weights={"cat"})


def test_a_path_in_the_folder_of_the_run_resumes_it(tmp_path):
    first = trained(tmp_path / "run", [HEAD], checkpoint_seconds=1000)
    for path in (tmp_path / "run", str(tmp_path / "run" / "phase-1-head")):
        again = trainer(tmp_path / "run", [HEAD], checkpoint_seconds=1000)
        again.train(resume_from_checkpoint=path)
        assert again.reports == first.reports
    with pytest.raises(UserError, match="outside args.output_dir"):
        again.train(resume_from_checkpoint=str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="there is no folder"):
        again.train(resume_from_checkpoint=str(tmp_path / "run" / "phase-9"))


def test_an_older_checkpoint_is_not_taken_for_the_newest(tmp_path):
    own = {"save_strategy": "epoch", "save_total_limit": 5}
    made = trained(tmp_path, [{**COLD, "epochs": 3}], **own)
    old, new = tmp_path / "phase-1-all" / "checkpoint-3", tmp_path / "phase-1-all" / "checkpoint-6"
    with pytest.raises(UserError, match="checkpoint-3 is not the newest of its phase, checkpoint"):
        made.train(resume_from_checkpoint=old)
    trainer(tmp_path, [{**COLD, "epochs": 3}], **own).train(resume_from_checkpoint=new)


class Several(nn.Module):
    """Returns its logits as the first of several values."""

    def __init__(self, channels=3):
        super().__init__()
        self.body, self.top = nn.Conv2d(channels, 4, 7, 16), nn.Linear(4, 3)

    def forward(self, pixel_values):
        features = self.body(pixel_values).mean((2, 3))
        return self.top(features), features


def test_a_module_that_returns_several_values_trains_on_the_first(tmp_path):
    stored = images(12, size=224)
    data = {"train_dataset": stored, "eval_dataset": stored, "head": ["top.*"]}
    done = trained(tmp_path, [HEAD, {**ALL, "features": "live"}], Several(), **data)
    assert [report.features for report in done.reports] == ["cached", "live"]
    assert 0 <= done.reports[1].metrics["accuracy"] <= 1
    assert done.predict(stored).predictions.shape == (12, 3)


def test_the_log_of_all_phases_is_one_in_the_end(tmp_path):
    done = trained(tmp_path, [{**HEAD, "epochs": 2}, {**COLD, "epochs": 1}])
    steps = [row["step"] for row in done.state.log_history if "loss" in row]
    assert steps == [3, 6, 9]
    assert done.state.global_step == 9
    assert [row["epoch"] for row in done.state.log_history if "loss" in row] == [1, 2, 3]
    assert {row["phase"] for row in done.state.log_history} == {"head", "all"}
    assert [row["step"] for row in done.reports[1].history] == [3]


@pytest.mark.parametrize(("schedule", "share"), [("constant", 1), ("linear", 1 / 3)])
def test_the_rate_that_each_group_had_in_a_step_is_logged(tmp_path, schedule, share):
    """Of the third of three steps: the rates of the next one would be 0."""
    phase = {**COLD, "layer_decay": 0.5, "schedule": schedule}
    done = trained(tmp_path, [phase])
    row = next(row for row in done.reports[0].history if "loss" in row)
    rates = {rate["label"]: share * rate["lr"] for rate in done.reports[0].rates}
    assert len(rates) > 2
    assert {f"learning_rate/{label}": pytest.approx(lr) for label, lr in rates.items()} == {
        key: value for key, value in row.items() if key.startswith("learning_rate/")
    }


def test_a_checkpoint_opens_with_from_pretrained(tmp_path):
    model = network(RESNET)
    done = trained(tmp_path, [{**COLD, "epochs": 2}], model, save_strategy="epoch")
    [place] = (tmp_path / "phase-1-all").glob("checkpoint-3")
    opened = AutoModelForImageClassification.from_pretrained(place).eval()
    assert opened.config.id2label == dict(enumerate(NAMES))
    assert set(state(opened)) == set(state(done.model))


def test_our_metrics_take_what_logits_are_preprocessed_to(tmp_path):
    """Classes give the same accuracy as logits, and nothing that needs probabilities."""

    def made(first, **own):
        own = {"preprocess_logits_for_metrics": first, **own}
        return TransferTrainer(network(), arguments(tmp_path), [HEAD], **DATA, **own)

    usual, doubled, classes = (
        made(first).evaluate()
        for first in (None, lambda logits, _: logits * 2, lambda logits, _: logits.argmax(-1))
    )
    assert doubled["eval_nll"] != usual["eval_nll"]
    of_classes = {"eval_accuracy", "eval_macro_f1", "eval_balanced_accuracy"}
    assert of_classes < set(usual)
    assert {key for key in classes if key.startswith("eval_") and "_per_" not in key} == {
        *of_classes, "eval_loss", "eval_runtime", "eval_model_preparation_time",
    }  # fmt: skip
    for key in of_classes:
        assert classes[key] == doubled[key] == usual[key]


def test_metrics_of_preprocessed_logits_that_there_cannot_be_are_named_before_training(tmp_path):
    def refused(says, first, phase=HEAD):
        own = {"preprocess_logits_for_metrics": first}
        with pytest.raises(UserError, match=says):
            TransferTrainer(network(), arguments(tmp_path), [phase], **DATA, **own).train()

    refused(r"returns a shape of \(3,\) for logits of \(5, 3\), and the usual", lambda x, _: x[0])
    refused("cannot run preprocess_logits_for_metrics: .*; it takes logits", lambda x: x)
    best = {**HEAD, "best": "auroc"}
    refused("no metric 'auroc'; have accuracy, balanced_accuracy", lambda x, _: x.argmax(-1), best)

    def right(prediction):
        return {"right": float((prediction.predictions == prediction.label_ids).mean())}

    own = {"preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1)}
    made = TransferTrainer(
        network(), arguments(tmp_path), [HEAD], compute_metrics=right, **DATA, **own
    )
    made.train()
    assert 0 <= made.reports[0].metrics["right"] <= 1


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (
            {"train_dataset": 5},
            "train_dataset is of type int; pass data.train or data.validation of load",
        ),
        ({"train_dataset": "photos"}, "train_dataset is of type str"),
        ({"eval_dataset": {"a": 3}}, "eval_dataset is of type int"),
        ({"data_collator": 5}, "data_collator is of type int; pass a function"),
        ({"callbacks": "x"}, "callbacks: one is of type str"),
        ({"callbacks": [object()]}, "callbacks: one is of type object"),
    ],
)
def test_objects_of_another_kind_are_named_before_anything_is_built(tmp_path, own, says):
    with pytest.raises(UserError, match=says):
        TransferTrainer(network(), arguments(tmp_path), [HEAD], **{**DATA, **own})


class Plain(nn.Module):
    """A module of one's own, with so many outputs."""

    def __init__(self, outputs):
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, outputs)

    def forward(self, pixel_values):
        return self.fc(self.body(pixel_values).mean((2, 3)))


class Renamed(Plain):
    """The same, whose images have another name."""

    def forward(self, x):
        return super().forward(x)


def test_a_module_that_cannot_take_pixel_values_is_named(tmp_path):
    with pytest.raises(UserError, match="Renamed.forward is called with pixel_values=…: .*"):
        TransferTrainer(Renamed(3), arguments(tmp_path), [COLD], head=["fc.*"], **DATA)


def test_a_label_beyond_the_outputs_of_a_module_is_one_line(tmp_path):
    made = TransferTrainer(Plain(2), arguments(tmp_path), [COLD], head=["fc.*"], **DATA)
    with pytest.raises(UserError, match="phase all: an image has the label 2, and the model has"):
        made.train()


def test_a_home_folder_that_there_is_not_is_one_line(tmp_path):
    for use in (hf_transfer.load, hf_transfer.runs, trainer(tmp_path, [HEAD]).save_model):
        with pytest.raises(UserError, match="there is no home folder for '~nosuchuser/x'"):
            use("~nosuchuser/x")


class Named(Pixels):
    """Labels under another name."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {"pixel_values": item["pixel_values"], "kind": item["labels"]}


def test_labels_may_have_another_name(tmp_path):
    sets = {
        kind: {
            "train_dataset": kind(images(), network()),
            "eval_dataset": kind(images(6), network()),
        }
        for kind in (Named, Pixels)
    }
    named = trained(tmp_path, [HEAD], label_names=["kind"], **sets[Named])
    plain = trained(tmp_path, [HEAD], **sets[Pixels])
    assert changed(state(named.model), state(plain.model)) == set()
    assert named.reports[0].metrics == plain.reports[0].metrics
    assert trained(tmp_path, [HEAD], label_names=["kind"]).reports[0].features == "cached"
    with pytest.raises(UserError, match="an image has one label"):
        trainer(tmp_path, [HEAD], label_names=["a", "b"], **sets[Named])


def test_metrics_of_each_batch_are_those_of_all_images_together(tmp_path):
    phase = {**COLD, "epochs": 1}
    own = {"per_device_eval_batch_size": 5}
    once = trained(tmp_path, [phase], batch_eval_metrics=True, **own).reports[0].metrics
    assert once == pytest.approx(trained(tmp_path, [phase], **own).reports[0].metrics)


def test_metrics_see_inputs_where_the_set_gives_them(tmp_path):
    def seen(prediction):
        return {"seen": float(prediction.inputs.shape[-1]), "lost": float(prediction.losses.mean())}

    own = {"compute_metrics": seen, "include_for_metrics": ["inputs", "loss"]}
    done = trained(tmp_path, [HEAD], eval_dataset=Pixels(images(6), network()), **own)
    assert done.reports[0].metrics["seen"] == 32
    with pytest.raises(UserError, match=r"include_for_metrics=\['inputs'\] needs a validation set"):
        trainer(tmp_path, [HEAD], **own)


def test_metrics_of_ones_own_that_fail_are_named_in_a_line(tmp_path):
    def fails(prediction):
        return {"right": 1 / 0}

    with pytest.raises(
        UserError, match="cannot run compute_metrics: division by zero; it t"
    ) as one:
        trained(tmp_path, [HEAD], compute_metrics=fails)
    assert isinstance(one.value.__cause__, ZeroDivisionError)
    with pytest.raises(UserError, match="compute_metrics returned .* float; it takes an EvalPred"):
        trained(tmp_path, [HEAD], compute_metrics=lambda prediction: 0.5)
    with pytest.raises(UserError, match="compute_metrics is of type list, not a function"):
        trainer(tmp_path, [HEAD], compute_metrics=["accuracy"])


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("cat", "the training set gives 'cat' as a label"),
        (0.5, "the training set gives 0.5 as a label"),
        (7, "gives the label 7; a label is a whole number from 0 to 2"),
    ],
)
def test_a_label_that_is_no_place_of_the_models_is_told_before_training(tmp_path, label, says):
    own = [{"pixel_values": torch.zeros(3, 32, 32), "labels": label}] * 9
    with pytest.raises(UserError, match=says):
        trained(tmp_path, [HEAD], train_dataset=own, eval_dataset=None)


def test_stored_pixels_beside_other_items_are_told(tmp_path):
    mixed = torch.utils.data.ConcatDataset([images(12), Pixels(images(12), network())])
    with pytest.raises(UserError, match="stored pixels of an ImageSet beside other items"):
        trained(tmp_path, [{**HEAD, "batch_size": 24}], train_dataset=mixed)


@pytest.mark.parametrize(("size", "channels"), [(40, 3), (32, 1)])
def test_a_bare_module_sees_small_images_as_they_are(tmp_path, size, channels):
    pixels = images(12, size=size).pixels[..., :channels]
    stored = ImageSet.from_arrays(pixels, np.arange(12) % 3, NAMES)
    model = Several(channels)
    data = {"train_dataset": stored, "eval_dataset": stored, "head": "top.*"}
    done = trained(tmp_path, [HEAD], model, **data)
    assert (done.backbone.image.size, done.backbone.image.channels) == (size, channels)
    assert done.predict(stored).predictions.shape == (12, 3)


class Streamed(torch.utils.data.IterableDataset):
    def __iter__(self):
        stored = Pixels(images(20), network())
        yield from (stored[i] for i in range(len(stored)))


def test_a_stream_trains_for_its_steps_and_needs_them(tmp_path):
    phase = {key: value for key, value in COLD.items() if key != "epochs"}
    done = trained(tmp_path, [{**phase, "steps": 4}], train_dataset=Streamed())
    assert done.reports[0].steps == 4
    with pytest.raises(UserError, match="phase all: epochs .* steps"):
        trained(tmp_path, [COLD], train_dataset=Streamed())


class Items(torch.utils.data.Dataset):
    """Images of one size, with labels that a function makes of their class."""

    def __init__(self, label=int, size=32, **more):
        self.label, self.size, self.more = label, size, more

    def __len__(self):
        return 8

    def __getitem__(self, index):
        pixels = torch.full((3, self.size, self.size), float(index % 2))
        return {"pixel_values": pixels, "labels": self.label(index % 2), **self.more}


class Bare(nn.Module):
    def __init__(self, outputs=2):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, outputs)

    def forward(self, pixel_values):
        return self.head(self.body(pixel_values).relu().mean((2, 3)))


def vit(**config):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return ViTForImageClassification(
        ViTConfig(**sizes, intermediate_size=16, image_size=32, patch_size=8, **config)
    )


@pytest.mark.parametrize("model", [Bare, lambda: vit(num_labels=2)])
@pytest.mark.parametrize("label", [lambda i: torch.eye(2)[i], lambda i: torch.tensor([i])])
def test_labels_that_the_usual_loss_or_metrics_cannot_take_are_told_first(tmp_path, model, label):
    own = {"head": ["head"]} if model is Bare else {}
    made = trainer(
        tmp_path, [HEAD], model(), train_dataset=Items(label), eval_dataset=Items(label), **own
    )
    with pytest.raises(UserError, match=r"labels of shape \(.,\), and a label is one number"):
        made.train()


def test_a_loss_and_metrics_of_ones_own_take_labels_of_any_kind(tmp_path):
    def squared(outputs, labels, num_items_in_batch=None):
        return nn.functional.mse_loss(outputs.squeeze(1), labels)

    data = {"train_dataset": Items(float), "eval_dataset": {"a": Items(float)}}
    own = {"compute_loss_func": squared, "compute_metrics": None, "head": ["head"]}
    made = trained(tmp_path, [{**HEAD, "best": "last"}], Bare(1), **own, **data)
    first, last = (row["loss"] for row in made.reports[0].history)
    assert last < first


def test_truth_values_are_classes(tmp_path):
    data = {"train_dataset": Items(bool), "eval_dataset": Items(bool)}
    found = trained(tmp_path, [HEAD], vit(num_labels=2), **data).evaluate()
    assert 0 <= found["eval_accuracy"] <= 1


def test_one_number_for_an_image_is_regressed_as_transformers_takes_it(tmp_path):
    data = {"train_dataset": Items(float), "eval_dataset": Items(float)}
    made = trained(tmp_path, [HEAD], vit(num_labels=1, problem_type="regression"), **data)
    assert "eval_rmse" in made.evaluate()
    with pytest.raises(UserError, match="has one output, 'LABEL_0', .* problem_type='regression'"):
        trained(tmp_path, [HEAD], vit(num_labels=1), **data)


def test_images_that_the_model_cannot_take_are_told_first(tmp_path):
    made = trainer(tmp_path, [HEAD], vit(), train_dataset=Items(size=48), eval_dataset=None)
    with pytest.raises(UserError, match=r"ViTForImageClassification on images of \(3, 48, 48\): "):
        made.train()
    mixed = [Items(size=size)[0] for size in (32, 40) * 4]
    made = trainer(tmp_path, [HEAD], Bare(), head=["head"], train_dataset=mixed, eval_dataset=None)
    with pytest.raises(UserError, match=r"pixel_values of \(3, 32, 32\) and \(3, 40, 40\); let"):
        made.train()


@pytest.mark.parametrize("model", [Bare, network])
def test_what_a_model_does_not_take_of_an_item_is_left_out(tmp_path, model):
    data = {"train_dataset": Items(idx=3), "eval_dataset": Items(idx=3)}
    own = {"head": ["head"]} if model is Bare else {}
    (report,) = trained(tmp_path, [HEAD], model(), **data, **own).reports
    assert report.steps == 2


def test_tuples_to_predict_for_are_told(tmp_path):
    made = trainer(tmp_path, [HEAD])
    with pytest.raises(UserError, match="an image comes as a tuple; let the data set give dict"):
        made.predict([(torch.zeros(3, 32, 32), 1)])


def test_models_that_cannot_be_trained_as_they_come_are_told(tmp_path):
    own = {"train_dataset": Items(), "head": ["head"]}
    with pytest.raises(UserError, match="comes in a DataParallel; pass model.module"):
        trainer(tmp_path, [HEAD], nn.DataParallel(Bare()), **own)
    with pytest.raises(UserError, match="comes in a OptimizedModule; pass model._orig_mod"):
        trainer(tmp_path, [HEAD], torch.compile(Bare()), **own)
    with torch.device("meta"), pytest.raises(UserError, match="on the meta device and has no wei"):
        trainer(tmp_path, [HEAD], Bare(), **own)


def test_streams_of_torch_and_datasets_train_and_a_generator_is_told(tmp_path):
    phase = {"train": "head", "steps": 2, "lr": 1e-2, "batch_size": 4}
    rows = [Items()[place] for place in range(8)]
    stream = datasets.Dataset.from_list(
        [{"pixel_values": row["pixel_values"].numpy(), "labels": row["labels"]} for row in rows]
    ).to_iterable_dataset()
    own = {"head": ["head"], "eval_dataset": None}
    assert trained(tmp_path, [phase], Bare(), train_dataset=stream, **own).state.global_step == 2
    with pytest.raises(UserError, match="train_dataset is of type generator; pass"):
        trainer(tmp_path, [phase], Bare(), train_dataset=(row for row in rows), **own)


def test_dropping_the_only_batch_is_told(tmp_path):
    with pytest.raises(UserError, match="drop_last leaves no batch of 24 images, at 64 in a step"):
        trained(tmp_path, [{**HEAD, "batch_size": 64}], dataloader_drop_last=True)


def test_an_optimizer_without_its_options_is_told(tmp_path):
    own = {"train_dataset": images(), "optimizer_cls_and_kwargs": torch.optim.SGD}
    with pytest.raises(UserError, match="optimizer_cls_and_kwargs is of type type; pass a class"):
        TransferTrainer(network(), arguments(tmp_path), [HEAD], **own)


def test_a_model_init_may_take_a_trial(tmp_path):
    own = {"train_dataset": images(), "model_init": lambda trial, *rest, **more: network()}
    assert TransferTrainer(None, arguments(tmp_path), [HEAD], **own).backbone.labels == NAMES


def test_parameters_frozen_by_hand_that_a_phase_trains_are_told(tmp_path, caplog):
    model = network()
    model.timm_model.conv1.requires_grad_(False)
    trainer(tmp_path, [HEAD], model)
    assert not caplog.text
    made = trainer(tmp_path, [HEAD, ALL], model)
    assert "the first is conv1" in caplog.text
    assert "phase all trains them" in caplog.text
    made.train()
    caplog.clear()
    trainer(tmp_path, [COLD], model)
    assert not caplog.text  # what is frozen now, a phase has frozen
