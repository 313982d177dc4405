"""The trainer: phases do what they say, and nothing else; it equals the plain Trainer otherwise."""

import json
import logging

import datasets
import numpy as np
import pytest
import torch
from small import (
    ALL,
    COLD,
    CONVNEXT,
    HEAD,
    NAMES,
    RESNET,
    VIT,
    Explode,
    Pixels,
    arguments,
    changed,
    images,
    network,
    state,
    trained,
    trainer,
    untimed,
)
from tiny_folders import stir
from torch import nn
from transformers import Trainer, TrainerCallback, default_data_collator

from hf_transfer.backbones.load import load_backbone, load_model
from hf_transfer.base.errors import UserError
from hf_transfer.data.image_set import ImageSet
from hf_transfer.inputs.model_input import collate as together
from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.metrics.by_name import EpochMetrics
from hf_transfer.serving.hub import gather
from hf_transfer.training.freezing import FreezingError
from hf_transfer.training.layerwise import LayerwiseTrainer
from hf_transfer.training.loss import LOSSES
from hf_transfer.training.recovery import checkpoints
from hf_transfer.training.recovery.divergence import DivergedError
from hf_transfer.training.trainer import TransferTrainer

LIVE = {**HEAD, "features": "live"}
MIXED = {**COLD, "augment": "standard", "mixup": 0.4, "cutmix": 0.8, "label_smoothing": 0.1}


# --- frozen stays frozen ---------------------------------------------------------------------


@pytest.mark.parametrize("features", ["live", "cached"])
def test_a_head_phase_leaves_every_other_parameter_and_buffer_bitwise_unchanged(tmp_path, features):
    model = network(RESNET)
    before = state(model)
    done = trained(tmp_path, [{**HEAD, "features": features, "weight_decay": 0.1}], model)
    assert changed(before, state(model)) == {"timm_model.fc.weight", "timm_model.fc.bias"}
    assert done.reports[0].features == features
    assert done.reports[0].checks == {
        "moved": 2, "unmoved": [], "still": len(before) - 2, "ranks": 1,
    }  # fmt: skip


def test_thawed_statistics_move_and_frozen_ones_do_not(tmp_path):
    model = network(RESNET)
    before = state(model)
    trained(tmp_path, [HEAD, {**ALL, "train": "last 1 stage"}], model)
    moved = changed(before, state(model))
    assert "timm_model.layer4.0.bn2.running_mean" in moved
    assert all(name.startswith(("timm_model.layer4", "timm_model.fc")) for name in moved)


class Modes(TrainerCallback):
    """Notes in which mode each module runs forward while the network trains."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: dict[str, set[bool]] = {}
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda m, _, name=name: self.note(model, m, name))

    def note(self, model: nn.Module, module: nn.Module, name: str) -> None:
        if model.training:
            self.seen.setdefault(name, set()).add(module.training)


@pytest.mark.parametrize("backbone", [RESNET, VIT])
@pytest.mark.parametrize("still_norms", [False, True])
def test_dropout_and_norms_are_off_in_frozen_groups_and_on_in_thawed_ones(
    tmp_path, backbone, still_norms
):
    model = network(backbone, dropout=0.3)
    watch = Modes(model)
    phase = {**COLD, "train": "last 1 block", "still_norms": still_norms}
    done = trained(tmp_path, [phase], model, callbacks=[watch])
    thawed = set(done.phases[0].parameters)
    prefix, norms = model.backbone.prefix, set(model.backbone.layout.norms)
    held = 0
    for group in model.backbone.groups.groups:
        frozen = thawed.isdisjoint(group.parameters)
        for path in group.modules:
            for name, _ in model.get_submodule(prefix + path).named_modules(prefix=prefix + path):
                still = frozen or (still_norms and name.removeprefix(prefix) in norms)
                held += still
                if name in watch.seen:
                    assert watch.seen[name] == {not still}, name
    assert held > 10


def test_a_callback_that_touches_a_frozen_parameter_stops_the_run_with_its_name(tmp_path):
    class Tamper(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                model.timm_model.layer1[0].conv1.weight[0, 0, 0, 0] += 1e-3

    with pytest.raises(FreezingError, match=r"layer1\.0\.conv1\.weight"):
        trained(tmp_path, [LIVE], callbacks=[Tamper()])


def test_a_group_that_cannot_move_is_named(tmp_path):
    with pytest.raises(
        UserError, match="group head was to train and nothing in it moved; raise lr"
    ):
        trained(tmp_path, [{**HEAD, "lr": 1e-30}])


def test_a_warmup_given_as_a_share_lets_the_only_step_train(tmp_path):
    """The shipped recipes warm up for a tenth of a phase, which rounds up to one step."""
    only = {key: value for key, value in HEAD.items() if key != "epochs"} | {"steps": 1}
    done = trained(tmp_path / "a", [{**only, "warmup": 0.1}])
    plain = trained(tmp_path / "b", [only])
    assert changed(state(plain.model), state(done.model)) == set()


def test_a_warmup_as_long_as_its_phase_is_refused_before_anything_is_trained(tmp_path):
    phases = [HEAD, {**ALL, "epochs": 2, "warmup": 6}]  # of three steps an epoch
    with pytest.raises(UserError, match="phase all: warmup: 6 leaves none of the phase's 6 steps"):
        trained(tmp_path, phases, checkpoint_seconds=0)
    assert not list(tmp_path.iterdir())
    assert trained(tmp_path, [HEAD, {**ALL, "epochs": 2, "warmup": 5}]).reports[1].steps == 6


# --- equal to the plain Trainer --------------------------------------------------------------


@pytest.mark.parametrize("backbone", [RESNET, VIT])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_decay_one_and_nothing_frozen_equals_the_plain_trainer_bit_for_bit(
    tmp_path, backbone, accumulate
):
    """Accumulated batches are all full: of a smaller one Trainer takes the mean of means."""
    options = {"learning_rate": 3e-3, "num_train_epochs": 2, "per_device_train_batch_size": 4}
    options |= {"weight_decay": 0.0, "gradient_accumulation_steps": accumulate}
    options |= {"eval_strategy": "epoch", "logging_strategy": "epoch"}
    ends = []
    for kind in (Trainer, LayerwiseTrainer, TransferTrainer):
        model = network(backbone, dropout=0.2)
        own = {
            Trainer: {},
            LayerwiseTrainer: {"layer_decay": 1.0},
            TransferTrainer: {
                "phases": [{"train": "all", "cold_head": True, "layer_decay": 1.0, "best": "last"}]
            },
        }[kind]
        run = kind(
            model,
            arguments(tmp_path / "run", **options),
            train_dataset=Pixels(images(22 if accumulate == 1 else 24), model),
            eval_dataset=Pixels(images(9, seed=1), model),
            data_collator=default_data_collator,
            compute_metrics=None,
            **own,
        )
        run.train()
        rows = [row for row in untimed(run.state.log_history) if "train_loss" not in row]
        ends.append((state(model), rows))
    for end, rows in ends[1:]:
        assert changed(ends[0][0], end) == set()
        assert rows == ends[0][1]


def test_a_users_own_dataset_collator_metrics_and_callbacks_work_as_in_the_plain_trainer(tmp_path):
    stored = images(16)
    own = datasets.Dataset.from_dict(
        {"picture": [pixels.tolist() for pixels in stored.pixels], "kind": stored.labels.tolist()}
    )
    model = network()
    calls = []

    def collate(rows):
        pixels = torch.tensor([row["picture"] for row in rows]).permute(0, 3, 1, 2)
        return {
            "pixel_values": pixels[:, :, 4:36, 4:36] / 127.5 - 1,
            "labels": torch.tensor([row["kind"] for row in rows]),
        }

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            calls.append((state.global_step, args.learning_rate))

    def right(prediction):
        return {"right": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    options = {"learning_rate": 1e-3, "num_train_epochs": 2, "per_device_train_batch_size": 4}
    options |= {"weight_decay": 0.0, "eval_strategy": "epoch", "logging_strategy": "epoch"}
    ends = []
    for kind, more in ((Trainer, {}), (LayerwiseTrainer, {"layer_decay": 1.0})):
        model = network()
        run = kind(
            model,
            arguments(tmp_path / "run", remove_unused_columns=False, **options),
            train_dataset=own,
            eval_dataset=own.select(range(6)),
            data_collator=collate,
            compute_metrics=right,
            callbacks=[Count()],
            **more,
        )
        run.train()
        rows = [row for row in untimed(run.state.log_history) if "train_loss" not in row]
        assert "eval_right" in rows[-1]
        ends.append((state(model), rows))
    assert changed(ends[0][0], ends[1][0]) == set()
    assert ends[0][1] == ends[1][1]
    assert calls[:8] == calls[8:] == [(step, 1e-3) for step in range(1, 9)]


def test_a_bare_module_trains_when_its_head_is_named(tmp_path):
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 7, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
            self.top = nn.Linear(4, 3)

        def forward(self, pixel_values):
            return self.top(self.body(pixel_values).flatten(1))

    model = Bare()
    with pytest.raises(UserError, match=r"head=\['top\.\*'\]"):
        trainer(tmp_path, [HEAD], model)
    before = state(model)
    stored = images(12, size=224)
    done = trained(
        tmp_path, [HEAD, ALL], model, head=["top.*"], train_dataset=stored, eval_dataset=stored
    )
    assert [report.features for report in done.reports] == ["cached", "live"]
    assert changed(before, state(model)) == set(before)
    assert done.reports[0].metrics["loss"] > 0


def test_layers_that_cannot_be_found_are_given_by_hand(tmp_path):
    class Two(nn.Module):
        """Runs on nothing but its own two inputs, so that nobody can see its order."""

        def __init__(self) -> None:
            super().__init__()
            self.eyes, self.mouth = nn.Conv2d(3, 4, 7, 16), nn.Conv2d(4, 4, 1)
            self.top = nn.Linear(4, 3)

        def forward(self, pixel_values, more=None):
            if more is None:
                raise ValueError("more is needed")
            return self.top((self.mouth(self.eyes(pixel_values)) + more).mean((2, 3)))

    def collated(rows):
        found = together(rows)
        pixels = found["pixels"].permute(0, 3, 1, 2).float() / 255
        return {"pixel_values": pixels, "labels": found["labels"], "more": torch.zeros(1)}

    model, hand = Two(), {"eyes": ["eyes"], "mouth": ["mouth.*"], "head": ["top"]}
    with pytest.raises(UserError, match=r"groups=\{'stem': \['conv1\.\*'\]"):
        trainer(tmp_path, [HEAD], model, head=["top"])
    done = trained(
        tmp_path, [HEAD, {**ALL, "train": "last 1 block"}, {**ALL, "layer_decay": 0.5}], model,
        groups=hand, data_collator=collated,
    )  # fmt: skip
    assert [report.groups for report in done.reports] == [
        ("head",), ("mouth", "head"), ("eyes", "mouth", "head"),
    ]  # fmt: skip
    rates = {rate["label"]: rate["lr"] for rate in done.reports[2].rates}
    assert rates["head"] == 2 * rates["mouth"] == 4 * rates["eyes"]


# --- the same again --------------------------------------------------------------------------


def test_two_runs_with_one_seed_are_equal_bit_for_bit_with_workers_or_without(tmp_path):
    ends = {}
    for workers in (0, 0, 2, 2):
        model = network(VIT, dropout=0.2)
        done = trained(tmp_path, [{**MIXED, "epochs": 2}], model, dataloader_num_workers=workers)
        end = (state(model), untimed(done.reports[0].history))
        first = ends.setdefault("first", end)
        assert changed(first[0], end[0]) == set()
        assert first[1] == end[1]
    other = network(VIT, dropout=0.2)
    trained(tmp_path, [{**MIXED, "epochs": 2}], other, seed=8)
    assert changed(ends["first"][0], state(other))


def test_the_same_trainer_trains_the_same_phases_after_each_other_anew(tmp_path):
    """Optimizer, scheduler and wrapper of one phase are never those of the next."""
    kinds = []

    class Note(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
            groups = optimizer.optimizer.param_groups
            kinds.append([len(group["params"]) for group in groups])

    trained(tmp_path, [HEAD, ALL], callbacks=[Note()])
    assert sum(kinds[0]) == 2
    assert sum(kinds[1]) == sum(1 for _ in network().parameters())


# --- the end of a phase ----------------------------------------------------------------------


class Scripted:
    """`compute_metrics` that says what a list says, one value an evaluation."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def __call__(self, prediction):
        return {"score": self.values.pop(0)}


class Ends(TrainerCallback):
    """Keeps the weights at the end of each epoch."""

    def __init__(self) -> None:
        self.kept = []

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.kept.append({n: p.detach().clone() for n, p in model.named_parameters()})


def parameters(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("best", "values", "epoch"),
    [("score", (0.1, 0.5, 0.3), 2), ("last", (0.1, 0.5, 0.3), 3), ("score", (0.5, 0.5, 0.4), 1)],
)
def test_a_phase_ends_with_the_weights_of_its_best_epoch(tmp_path, best, values, epoch):
    ends = Ends()
    phase = {**COLD, "epochs": 3, "best": best}
    done = trained(tmp_path, [phase], callbacks=[ends], compute_metrics=Scripted(*values))
    assert changed(ends.kept[epoch - 1], parameters(done.model)) == set()
    assert done.reports[0].best_epoch == epoch
    assert done.reports[0].metrics["score"] == values[epoch - 1]


def test_a_phase_starts_from_the_best_weights_of_the_one_before(tmp_path):
    ends, starts = Ends(), []

    class Starts(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            starts.append(parameters(model))

    phases = [{**COLD, "epochs": 2, "best": "score"}, {**ALL, "best": "score", "lr": 1e-4}]
    trained(tmp_path, phases, callbacks=[ends, Starts()], compute_metrics=Scripted(0.9, 0.1, 0.5))
    assert changed(ends.kept[0], starts[1]) == set()
    assert changed(ends.kept[1], starts[1])


@pytest.mark.parametrize(
    ("stop", "values", "epochs"),
    [
        ({"metric": "score", "patience": 1}, (0.5, 0.4, 0.9, 0.9), 2),
        ({"metric": "score", "patience": 2}, (0.5, 0.4, 0.6, 0.5, 0.5, 0.9), 5),
        ({"metric": "score", "patience": 1, "min_change": 0.2}, (0.1, 0.4, 0.5, 0.9), 3),
        ({"metric": "score", "patience": 9}, (0.5, 0.4, 0.3, 0.2, 0.1, 0.0), 6),
    ],
)
def test_a_phase_stops_when_its_metric_stops_to_improve(tmp_path, stop, values, epochs):
    phase = {**HEAD, "epochs": 6, "stop": stop, "best": "score"}
    done = trained(tmp_path, [phase], compute_metrics=Scripted(*values))
    report = done.reports[0]
    assert report.epochs == epochs
    assert (report.stopped is None) == (epochs == 6)
    if report.stopped:
        assert report.stopped.startswith("score did not improve for")


def test_a_phase_does_not_stop_before_its_fewest_steps(tmp_path):
    """With few images an epoch is a step or two, in which no metric can tell anything."""
    stop = {"metric": "score", "patience": 1}
    phase = {**HEAD, "epochs": 6, "batch_size": 4, "stop": stop, "best": "score"}
    values = (0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
    (early,) = trained(tmp_path / "a", [phase], compute_metrics=Scripted(*values)).reports
    each = early.steps // 2
    assert (early.epochs, each > 0) == (2, True)
    waits = {**phase, "min_steps": 4 * each}
    (late,) = trained(tmp_path / "b", [waits], compute_metrics=Scripted(*values)).reports
    assert (late.epochs, late.steps) == (4, 4 * each)
    assert late.stopped.startswith("score did not improve for")
    assert late.best_epoch == 1


def test_stop_rises_stops_at_the_first_rise_of_the_validation_loss(tmp_path):
    done = trained(tmp_path, [{**HEAD, "epochs": 12, "lr": 3.0, "stop": "rises"}])
    losses = [row["eval_loss"] for row in done.reports[0].history]
    assert len(losses) < 12
    assert losses[-1] >= min(losses[:-1])
    assert losses[:-1] == sorted(losses[:-1], reverse=True)


def test_a_callback_that_ends_a_phase_is_not_taken_for_early_stopping(tmp_path):
    class Enough(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    done = trained(tmp_path, [{**HEAD, "epochs": 4}], callbacks=[Enough()])
    assert done.reports[0].stopped == "a callback ended it"


def test_gradual_thaws_from_the_top_and_each_phase_moves_just_its_own(tmp_path):
    model = network(CONVNEXT)
    gradual = {"gradual": "1 stage", "epochs": 1, "lr": 1e-3, "lr_drop": 0.5, "batch_size": 8}
    before, seen = state(model), []

    class Note(TrainerCallback):
        def on_train_end(self, args, state_, control, model=None, **kwargs):
            seen.append((args.learning_rate, changed(before, state(model))))

    done = trained(tmp_path, [gradual], model, callbacks=[Note()])
    names = [report.name for report in done.reports]
    assert names == ["head", "last-1-stage", *(f"last-{i}-stages" for i in (2, 3, 4)), "all"]
    for i, (phase, (rate, moved)) in enumerate(zip(done.phases, seen, strict=True)):
        assert rate == pytest.approx(1e-3 * 0.5**i)
        assert moved == {model.backbone.prefix + name for name in phase.parameters}
    assert seen[-1][1] == set(before)


# --- each setting changes something ----------------------------------------------------------

BASE = {**COLD, "schedule": "linear", "features": "live"}
SETTINGS = {
    "lr": 2e-3,
    "layer_decay": 0.5,
    "lrs": {"head": 1e-2},
    "lr_pair": [1e-5, 1e-3],
    "weight_decay": 0.3,
    "optimizer": "adafactor",
    "schedule": "constant",
    "warmup": 0.5,
    "batch_size": 6,
    "accumulate": 3,
    "sampler": "balanced",
    "augment": "light",
    "label_smoothing": 0.2,
    "mixup": 0.5,
    "cutmix": 0.5,
    "l2_sp": 5.0,
    "max_grad_norm": 0.01,
    "still_norms": True,
    "reestimate_norms": True,
    "momentum": 0.9,
    "steps": 2,
    "epochs": 2,
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The end of training with the base settings, and with plain sgd."""
    folder = tmp_path_factory.mktemp("usual")
    plain = state(trained(folder, [BASE], eval_dataset=None).model)
    sgd = {**BASE, "optimizer": "sgd", "lr": 0.1}
    return {"adamw": plain, "sgd": state(trained(folder, [sgd], eval_dataset=None).model)}


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_setting_of_a_phase_changes_what_is_learned(tmp_path, usual, setting):
    phase, kind = {**BASE, setting: SETTINGS[setting]}, "adamw"
    if setting == "lr_pair":
        phase["lr"] = phase.pop("lr_pair")
    if setting == "steps":
        del phase["epochs"]
    if setting == "momentum":
        phase, kind = {**phase, "optimizer": "sgd", "lr": 0.1}, "sgd"
    done = trained(tmp_path, [phase], eval_dataset=None)
    assert changed(usual[kind], state(done.model))


def test_each_optimizer_and_schedule_of_a_recipe_trains(tmp_path):
    from hf_transfer.recipe.phase_specs import OPTIMIZERS, SCHEDULES

    ends = []
    for optimizer in OPTIMIZERS:
        phase = {**HEAD, "optimizer": optimizer, "lr": 1e-3}
        ends.append(state(trained(tmp_path, [phase], eval_dataset=None).model))
    for schedule in SCHEDULES:
        warmup = 0.3 if schedule == "constant_with_warmup" else 0.0
        phase = {**HEAD, "schedule": schedule, "warmup": warmup, "lr": 1e-3}
        ends.append(state(trained(tmp_path, [phase], eval_dataset=None).model))
    del ends[len(OPTIMIZERS) + SCHEDULES.index("linear")]  # what TrainingArguments take
    for i, one in enumerate(ends):
        assert all(changed(one, other) for other in ends[i + 1 :]), i


def test_balanced_loss_weighs_classes_and_counts_images(tmp_path, usual):
    weights = torch.tensor([3.0, 0.5, 0.5])
    done = trained(tmp_path, [BASE], eval_dataset=None, class_weights=weights)
    assert changed(usual["adamw"], state(done.model))


def test_l2_sp_keeps_the_backbone_nearer_to_where_it_started(tmp_path):
    far = []
    for pull in (0.0, 30.0):
        model = network()
        before = state(model)
        trained(tmp_path, [{**COLD, "epochs": 3, "l2_sp": pull}], model, eval_dataset=None)
        names = [n for n, _ in model.named_parameters() if "fc" not in n]
        after = model.state_dict()
        far.append(sum((after[n] - before[n]).pow(2).sum().item() for n in names))
    assert far[1] < 0.7 * far[0]


@pytest.mark.parametrize("extra", [{}, {"label_smoothing": 0.1, "l2_sp": 1.0}, {"mixup": 0.5}])
@pytest.mark.parametrize("weights", [None, torch.tensor([2.0, 0.5, 0.5])])
def test_accumulated_batches_equal_one_large_batch(tmp_path, extra, weights):
    """For a network without batch statistics, with weighted and mixed losses, too."""
    ends = []
    for batch_size, accumulate in ((12, 1), (4, 3)):
        model = network(VIT)  # of 22 images: the last step has batches of 4, 4 and 2
        phase = {**COLD, **extra, "batch_size": batch_size, "accumulate": accumulate}
        phase |= {"optimizer": "sgd", "lr": 0.1}  # Adam makes much of rounding near zero
        own = {"train_dataset": images(22), "eval_dataset": None, "class_weights": weights}
        trained(tmp_path, [phase], model, **own)
        ends.append(state(model))
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_other_tasks_too_accumulate_to_one_large_batch_and_move_nothing_that_is_frozen(
    tmp_path, task
):
    flags = np.random.default_rng(0).random((24, 3)) < 0.4
    labels = flags * 1.0 if task == "multi_label" else flags * np.array([3.0, -1.0, 0.5])
    data = ImageSet.from_arrays(images().pixels, labels, NAMES)
    ends = []
    for batch_size, accumulate in ((12, 1), (4, 3)):
        model = load_backbone(VIT, NAMES, pretrained=False, image_size=32, task=task)
        phase = {**HEAD, "batch_size": batch_size, "accumulate": accumulate, "optimizer": "sgd"}
        done = trained(tmp_path, [phase], model, train_dataset=data, eval_dataset=data)
        assert done.reports[0].checks["moved"] == 2
        ends.append(state(model))
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], rtol=1e-5, atol=1e-6), name
    assert set(done.reports[0].metrics) >= set(TASKS[task].metrics)
    logits = torch.from_numpy(done.predict(data).predictions)
    mean = LOSSES[task](logits, torch.from_numpy(data.labels)) / logits.numel()
    assert done.reports[0].metrics["loss"] == pytest.approx(mean.item(), rel=1e-5)


def test_a_loss_function_of_the_users_is_used_with_the_pull_of_l2_sp(tmp_path):
    def doubled(outputs, labels, num_items_in_batch=None):
        total = nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
        return 2 * total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    logs = []
    for own in (None, doubled):
        done = trained(
            tmp_path, [{**BASE, "l2_sp": 1e-3}], eval_dataset=None, compute_loss_func=own
        )
        logs.append(done.reports[0].history[0]["loss"])
    assert logs[1] == pytest.approx(2 * logs[0], rel=0.1)


# --- what cannot be trained ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "options", "says"),
    [
        ({"best": "acuracy"}, {}, r"best: there is no metric 'acuracy'; have .*accuracy"),
        ({"stop": {"metric": "f1"}}, {}, "stop: there is no metric 'f1'"),
        ({"best": "p"}, {"compute_metrics": EpochMetrics([lambda *_: {"p": 0.5}])}, "less of 'p'"),
        ({"best": "accuracy"}, {"compute_metrics": None}, "no metric 'accuracy'; have loss"),
        ({"stop": "rises"}, {"eval_dataset": None}, "stop needs validation images"),
        ({"best": "accuracy"}, {"eval_dataset": None}, "best needs validation images"),
        ({"augment": "light"}, {"train_dataset": [{}]}, "augment vary the pixels of an ImageSet"),
        ({"mixup": 1.0}, {"train_dataset": [{}]}, "mixup vary the pixels"),
        ({"mixup": 1.0}, {"compute_loss_func": print}, "mixup would change the loss"),
        ({"optimizer": "adamm"}, {}, "knows no optimizer 'adamm'; nearest"),
        ({"schedule": "cosin"}, {}, "knows no schedule 'cosin'; nearest: cosine"),
        ({}, {"train_dataset": None}, "nothing to train on"),
        ({}, {"train_dataset": []}, "the training set is empty"),
        (
            {},
            {"eval_dataset": {"a": images(4), "b": images(4)}},
            "no 'loss' in common; have a_loss, b_loss",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(tmp_path, phase, options, says):
    with pytest.raises(UserError, match=says):
        trained(tmp_path / "out", [{**HEAD, **phase}], **options)
    assert not list(tmp_path.glob("out/phase*"))


def test_no_phases_and_a_checkpoint_path_are_refused(tmp_path):
    with pytest.raises(UserError, match="no phases"):
        trained(tmp_path, [])
    with pytest.raises(UserError, match="outside args.output_dir"):
        trainer(tmp_path, [HEAD]).train(resume_from_checkpoint="checkpoint-3")


def test_an_unknown_metric_of_a_users_function_is_named_after_the_first_evaluation(tmp_path):
    with pytest.raises(UserError, match="phase head: there is no metric 'rank'; have .*score"):
        trained(tmp_path, [{**HEAD, "best": "rank"}], compute_metrics=Scripted(0.1, 0.2))


def test_one_of_several_validation_sets_may_judge(tmp_path):
    sets = {"a": images(6, seed=2), "b": images(6, seed=3)}
    done = trained(
        tmp_path, [{**HEAD, "best": "b_loss", "stop": {"metric": "b_loss"}}], eval_dataset=sets
    )
    losses = [row["eval_b_loss"] for row in done.reports[0].history]
    assert done.reports[0].metrics["b_loss"] == min(losses)


def test_a_loss_that_is_no_number_stops_the_run_with_phase_epoch_and_step(tmp_path):
    with pytest.raises(
        DivergedError, match=r"^phase all, epoch 1, by step 3: the loss is nan; low"
    ):
        trained(tmp_path, [COLD], callbacks=[Explode(0.0, after=0)])


def test_a_loss_that_is_no_number_is_never_saved(tmp_path):
    explode = Explode(0.0, after=0)
    with pytest.raises(DivergedError):
        trained(tmp_path, [{**COLD, "epochs": 9}], checkpoint_seconds=0, callbacks=[explode])
    newest = checkpoints.newest(tmp_path / "phase-1-all")
    assert newest is None or all(
        torch.isfinite(tensor).all()
        for tensor in checkpoints.load_file(newest.folder / checkpoints.WEIGHTS).values()
        if tensor.is_floating_point()
    )


# --- what is kept ----------------------------------------------------------------------------


def test_a_trainer_that_is_not_to_save_writes_nothing(tmp_path):
    trained(tmp_path / "out", [HEAD, ALL])
    assert not list(tmp_path.glob("out/*"))


def test_the_reports_say_what_was_trained(tmp_path):
    done = trained(tmp_path, [HEAD, {**ALL, "layer_decay": 0.5}])
    head, everything = done.reports
    assert head.trainable_parameters == sum(
        p.numel() for p in done.model.timm_model.fc.parameters()
    )
    assert everything.trainable_parameters == everything.total_parameters
    assert [len(report.history) for report in done.reports] == [2, 1]
    assert {"loss", "eval_loss", "eval_accuracy", "learning_rate", "grad_norm"} <= set(
        head.history[0]
    )
    assert everything.rates[0]["lr"] == 1e-3
    assert everything.rates[-1]["lr"] < 1e-4
    assert head.steps == 6
    json.dumps(head.history)


def test_save_model_writes_what_is_published_with_its_card_and_leaves_other_files_alone(tmp_path):
    done = trained(tmp_path / "run", [HEAD, {**COLD, "epochs": 1}])
    place = tmp_path / "model"
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    done.save_model(str(place))
    files = {path.name for path in place.iterdir()}
    assert files == {
        "config.json", "model.safetensors", "preprocessor_config.json", "notes.txt", ".hf_transfer",
        "README.md", "report.json", "curve-1.svg", "curve-2.svg",
    }  # fmt: skip
    again = load_model(place)
    assert again.backbone.labels == NAMES
    assert changed(state(done.model), state(again)) == set()
    card = (place / "README.md").read_text()
    assert "trained on data that is not stated with hf_transfer's Trainer, from random" in card
    assert f"| Accuracy | validation | {done.reports[1].metrics['accuracy']:.3f} |" in card
    assert "| 1 head |" in card
    assert "recipe" not in card
    done.save_model()
    done.save_state()
    assert (
        set(gather(tmp_path / "run")) == set(gather(place)) == files - {"notes.txt", ".hf_transfer"}
    )


def test_the_card_of_a_model_that_was_not_trained_says_so(tmp_path):
    trainer(tmp_path, [HEAD]).save_model(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Phases: not stated." in card
    assert "Accuracy: not measured." in card


def test_save_pretrained_works_after_training_in_channels_last(tmp_path):
    model = network().to(memory_format=torch.channels_last)
    done = trained(tmp_path / "run", [HEAD, ALL], model, checkpoint_seconds=0)
    done.model.save_pretrained(tmp_path / "plain")
    assert (tmp_path / "plain" / "model.safetensors").is_file()
    again = trainer(tmp_path / "run", [HEAD, ALL], network(), checkpoint_seconds=0)
    again.train(resume_from_checkpoint=True)
    assert changed(state(done.model), state(again.model)) == set()


def test_a_forward_that_the_model_came_with_is_given_back(tmp_path):
    model = network()
    calls, forward = [], model.forward

    def mine(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    model.forward = mine
    trained(tmp_path, [HEAD, ALL], model)
    assert model.forward is mine
    assert calls


def test_bf16_trains_and_leaves_a_model_of_full_precision(tmp_path):
    done = trained(tmp_path, [HEAD, ALL], bf16=True)
    assert {p.dtype for p in done.model.parameters()} == {torch.float32}
    assert done.reports[0].features == "cached"
    plain = done.model(pixel_values=torch.zeros(1, 3, 32, 32)).logits
    assert plain.dtype == torch.float32


def test_prediction_after_training_needs_no_phase(tmp_path):
    done = trained(tmp_path, [{**HEAD, "label_smoothing": 0.3}])
    output = done.predict(images(9, seed=4))
    assert output.predictions.shape == (9, 3)
    assert output.label_ids.tolist() == list(np.arange(9) % 3)
    losses = done.evaluate()
    assert losses["eval_loss"] == pytest.approx(done.reports[0].metrics["loss"], rel=1e-5)


def test_one_line_a_phase_says_what_trains_and_at_which_rates(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="hf_transfer.training.phase_run"):
        trained(tmp_path, [HEAD])
    lines = [r.getMessage() for r in caplog.records if r.name == "hf_transfer.training.phase_run"]
    assert len(lines) == 1
    assert lines[0].startswith("phase 1 head: head; 291 of 372,979 parameters")
    assert "; rate 0.01" in lines[0]


@pytest.mark.parametrize("light", ["norms", "biases"])
@pytest.mark.parametrize(
    ("backbone", "kind"),
    [(RESNET, nn.BatchNorm2d), ("timm/test_efficientnet_gn", nn.GroupNorm), (VIT, nn.LayerNorm)],
)
def test_norms_or_biases_train_with_the_head_and_nothing_else_moves(
    tmp_path, backbone, kind, light
):
    model = stir(network(backbone))
    own, prefix = model.backbone.layout, model.backbone.prefix
    norms = [path for path, module in model.named_modules() if isinstance(module, kind)]
    assert len(norms) >= 5
    before = state(model)
    phase = {**ALL, "train": ["head", light], "steps": 1, "epochs": None, "best": "last"}
    done = trained(tmp_path, [LIVE, phase], model)
    moved = {name.removeprefix(prefix) for name in changed(before, state(model))}
    norms = {path.removeprefix(prefix) for path in norms}
    sizes = dict(own.parameters)
    if light == "norms":
        wanted = {n for n in sizes if n.rpartition(".")[0] in norms}
    else:
        wanted = {n for n in sizes if n.endswith("bias")}
    assert moved & set(sizes) == wanted | set(own.head)
    assert {name.rpartition(".")[0] for name in moved - set(sizes)} <= norms  # their statistics
    assert done.reports[1].trainable_parameters < 0.1 * done.reports[1].total_parameters
