"""Each field of TrainingArguments and argument of Trainer is honoured, a phase's, or refused."""

import inspect
from dataclasses import fields

import pytest
import torch
from small import COLD, HEAD, arguments, images, network, trained, trainer
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_transfer.base.errors import UserError
from hf_transfer.recipe.specs import PhaseSpec
from hf_transfer.training import argument_table as table
from hf_transfer.training.layerwise import LayerwiseTrainer
from hf_transfer.training.trainer import TransferTrainer


def test_the_table_has_every_field_of_training_arguments_and_no_other():
    """A new one of transformers fails here: say what becomes of it."""
    known = [f.name for f in fields(TrainingArguments)]
    assert [name for name in known if table.becomes_of(name) == "unknown"] == []
    told = {*table.HONOURED, *table.A_PHASES, *table.REFUSED, *table.ALWAYS}
    assert told - set(known) == set()
    assert set(table.VALUES) < set(table.HONOURED)


def test_the_table_has_every_argument_of_trainer_and_no_other():
    known = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert set(table.OF_TRAINER) == known


OTHER = {
    "auto_find_batch_size": True, "bf16_full_eval": True,
    "enable_jit_checkpoint": True, "eval_do_concat_batches": False, "fp16_full_eval": True,
    "include_num_input_tokens_seen": "all", "length_column_name": "size",
    "liger_kernel_config": {"rope": True}, "neftune_noise_alpha": 5.0,
    "optim_target_modules": ["fc"], "save_only_model": True, "use_cache": True,
    "use_liger_kernel": True, "push_to_hub": True, "hub_token": "hf_x", "hub_private_repo": True,
    "hub_model_id": "me/one", "hub_strategy": "all_checkpoints", "hub_always_push": True,
    "hub_revision": "x",
    "deepspeed": {"stage": 2}, "parallelism_config": object(),
}  # fmt: skip


@pytest.mark.parametrize("name", table.REFUSED)
def test_what_is_refused_is_refused_in_a_line_with_the_reason(tmp_path, name):
    args = arguments(tmp_path)
    setattr(args, name, OTHER[name])  # some cannot even be made on this machine
    with pytest.raises(UserError, match=f"^{name}=.* is refused, because ") as error:
        TransferTrainer(network(), args, [HEAD], train_dataset=images())
    assert "\n" not in str(error.value)
    assert "hf_x" not in str(error.value)


@pytest.mark.parametrize("name", table.VALUES)
def test_values_of_what_is_honoured_otherwise_are_refused(tmp_path, name):
    args = arguments(tmp_path)
    setattr(args, name, table.VALUES[name][0])
    with pytest.raises(UserError, match=f"^{name}=.* is refused, because "):
        TransferTrainer(network(), args, [HEAD], train_dataset=images())


def test_an_optimizer_that_is_made_already_is_refused_and_a_class_of_one_is_used(tmp_path):
    model = network()
    made = torch.optim.SGD(model.parameters())
    with pytest.raises(UserError, match="optimizers is refused, because each phase builds its own"):
        TransferTrainer(model, arguments(tmp_path), [HEAD], optimizers=(made, None))
    seen = []

    class Own(torch.optim.SGD):
        def __init__(self, params, **kwargs):
            super().__init__(params, **kwargs)
            seen.append((kwargs, [group["lr"] for group in self.param_groups]))

    own = (Own, {"momentum": 0.5})
    run = TransferTrainer(
        model, arguments(tmp_path), [HEAD, COLD], optimizer_cls_and_kwargs=own,
        train_dataset=images(),
    )  # fmt: skip
    run.train()
    assert [kwargs for kwargs, _ in seen] == [{"momentum": 0.5}] * 2
    assert seen[0][1] == [HEAD["lr"]] * len(seen[0][1])


def test_rates_in_the_options_of_an_optimizer_are_a_phases_to_say(tmp_path):
    own = (torch.optim.SGD, {"lr": 0.1})
    with pytest.raises(UserError, match="optimizer_cls_and_kwargs: lr is a phase's to say"):
        TransferTrainer(network(), arguments(tmp_path), [HEAD], optimizer_cls_and_kwargs=own)


def test_options_that_an_optimizer_does_not_take_are_named_before_anything_trains(tmp_path):
    own = (torch.optim.Adagrad, {"momentum": 0.9, "epss": 1e-8})
    with pytest.raises(UserError) as error:
        TransferTrainer(network(), arguments(tmp_path), [HEAD], optimizer_cls_and_kwargs=own)
    assert str(error.value).startswith(
        "optimizer_cls_and_kwargs: Adagrad does not take momentum, epss; it takes lr_decay, "
        "initial_accumulator_value, eps, "
    )
    assert "weight_decay" not in str(error.value)


@pytest.mark.parametrize("phases", [[{**HEAD, "epochs": 1}], [PhaseSpec("head", epochs=1)]])
def test_a_limit_of_steps_beside_phases_that_say_their_length_is_refused(tmp_path, phases):
    with pytest.raises(UserError, match="max_steps=7 is a phase's to say .* remove max_steps"):
        trainer(tmp_path, phases, max_steps=7)


@pytest.mark.parametrize(
    ("argument", "value", "phases"),
    [
        ("learning_rate", 0.3, [HEAD]),
        ("num_train_epochs", 9, [HEAD]),
        ("label_smoothing_factor", 0.1, [PhaseSpec("head", epochs=1)]),
    ],
)
def test_what_every_phase_says_itself_is_told(tmp_path, caplog, argument, value, phases):
    trainer(tmp_path, phases, **{argument: value})
    assert f"{argument}={value} is a phase's to say" in caplog.text


def test_what_one_phase_leaves_out_is_taken_from_the_arguments(tmp_path):
    plain = {"train": "head", "batch_size": 8}
    made = trainer(tmp_path, [plain, {**COLD, "lr": 1e-4}], max_steps=4, learning_rate=0.3)
    assert (made.phases[0].spec.steps, made.phases[0].spec.lr) == (4, 0.3)


def test_the_metric_for_the_best_model_is_what_a_phase_keeps_its_best_by(tmp_path):
    own = {"metric_for_best_model": "eval_accuracy", "load_best_model_at_end": True}
    own |= {"eval_strategy": "epoch", "save_strategy": "epoch"}
    made = trainer(tmp_path, [HEAD], **own)
    assert made.phases[0].spec.best == "accuracy"
    assert trainer(tmp_path, [{**HEAD, "best": "last"}], **own).phases[0].spec.best == "last"
    with pytest.raises(UserError, match="greater_is_better=False is refused, because more of 'eva"):
        trainer(tmp_path, [HEAD], greater_is_better=False, **own)
    least = {**own, "metric_for_best_model": "mae"}  # transformers takes more of it for better
    assert trainer(tmp_path, [HEAD], **least).phases[0].spec.best == "mae"
    data = {"train_dataset": images(), "eval_dataset": images(6)}
    layers = LayerwiseTrainer(network(), arguments(tmp_path, **own), **data)
    assert layers.phases[0].spec.best == "accuracy"


def test_a_schedule_that_follows_evaluations_is_refused(tmp_path):
    with pytest.raises(UserError, match="reduce_lr_on_plateau follows evaluations"):
        trainer(tmp_path, [{**HEAD, "schedule": "reduce_lr_on_plateau"}])


def test_the_own_loss_of_a_module_is_not_passed_over(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.top = nn.Conv2d(3, 4, 7, 16), nn.Linear(4, 3)

        def forward(self, pixel_values, labels=None):
            logits = self.top(self.body(pixel_values).mean((2, 3)))
            loss = None if labels is None else 2 * nn.functional.cross_entropy(logits, labels)
            return {"loss": loss, "logits": logits}

    stored = images(12, size=224)
    data = {"train_dataset": stored, "head": ["top.*"]}
    with pytest.raises(
        UserError, match="computes a loss of its own.* pass it as compute_loss_func"
    ):
        trainer(tmp_path, [COLD], Own(), **data)

    def doubled(outputs, labels, num_items_in_batch=None):
        return 2 * nn.functional.cross_entropy(outputs["logits"], labels)

    done = trained(tmp_path, [COLD], Own(), compute_loss_func=doubled, eval_dataset=None, **data)
    assert done.reports[0].history[0]["loss"] > 1.5


def test_evaluating_at_the_start_judges_nothing(tmp_path):
    """The weights that a phase starts from are no end of it."""
    done = trained(tmp_path, [{**HEAD, "best": "last"}, COLD], eval_on_start=True)
    assert done.reports[0].history[0]["step"] == 0
    assert all(report.best_epoch > 0 for report in done.reports)


def test_a_trainer_publishes_nothing_and_says_how_it_is_done(tmp_path):
    made = trainer(tmp_path, [HEAD])
    for way in (made.push_to_hub, made.create_model_card, made.init_hf_repo):
        with pytest.raises(UserError, match="save_model.FOLDER. of either writes .* push FOLDER"):
            way()
