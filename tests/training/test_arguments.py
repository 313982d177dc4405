"""Phases in Trainer's words, and back."""

from dataclasses import replace

import pytest
from small import NAMES, arguments, images, network

from hf_transfer.backbones.load import load_backbone
from hf_transfer.base.errors import RecipeError, UserError
from hf_transfer.planning.phases import make_phases
from hf_transfer.recipe.specs import PhaseSpec, Recipe
from hf_transfer.training.arguments import phase_arguments, resolved_phases, training_arguments
from hf_transfer.training.checks import check_model
from hf_transfer.training.trainer import TransferTrainer


def one(tmp_path, phase, **options):
    backbone = network().backbone
    args = arguments(tmp_path / "out", **options)
    return args, resolved_phases([{"train": "head", **phase}], args, backbone)[0]


def test_what_a_mapping_leaves_out_comes_from_the_arguments(tmp_path):
    options = {
        "learning_rate": 0.3, "num_train_epochs": 4, "weight_decay": 0.2, "warmup_steps": 0.1,
        "per_device_train_batch_size": 5, "gradient_accumulation_steps": 3, "optim": "adafactor",
        "lr_scheduler_type": "cosine", "label_smoothing_factor": 0.1, "max_grad_norm": 2.0,
    }  # fmt: skip
    _, phase = one(tmp_path, {"lr": 0.5}, **options)
    spec = phase.spec
    assert (spec.lr, spec.epochs, spec.weight_decay, spec.warmup) == (0.5, 4, 0.2, 0.1)
    assert (spec.batch_size, spec.accumulate, spec.optimizer) == (5, 3, "adafactor")
    assert (spec.schedule, spec.label_smoothing, spec.max_grad_norm) == ("cosine", 0.1, 2.0)
    assert one(tmp_path, {}, max_steps=9)[1].spec.steps == 9
    assert one(tmp_path, {"steps": 2}, **options)[1].spec.epochs is None


def test_the_arguments_set_nothing_of_a_head_that_is_solved_for(tmp_path):
    options = {"learning_rate": 0.3, "warmup_steps": 0.1, "per_device_train_batch_size": 5}
    _, phase = one(tmp_path, {"solve": "lbfgs"}, **options)
    assert phase.spec == PhaseSpec("head", solve="lbfgs")
    with pytest.raises(RecipeError, match="does not use lr, batch_size; remove them"):
        one(tmp_path, {"solve": "lbfgs", "batch_size": 5, "lr": 0.3})
    assert one(tmp_path, {"solve": None}, num_train_epochs=4)[1].spec.epochs == 4


def test_specs_and_phases_are_taken_as_they_are(tmp_path):
    backbone, args = network().backbone, arguments(tmp_path, learning_rate=0.3)
    spec = PhaseSpec("head", epochs=1)
    made = make_phases([spec], backbone.groups)
    assert resolved_phases([spec], args, backbone) == made
    assert resolved_phases(made, args, backbone) == made
    assert resolved_phases([made[0], {"train": "all"}], args, backbone)[0] == made[0]


def test_a_mapping_is_as_strict_as_a_recipe(tmp_path):
    with pytest.raises(RecipeError, match="epoch"):
        one(tmp_path, {"epoch": 1})
    with pytest.raises(UserError, match="knows no optimizer 'adamm'"):
        one(tmp_path, {"optimizer": "adamm"})


def test_a_phase_sets_its_own_arguments_and_leaves_the_runs_alone(tmp_path):
    args, phase = one(
        tmp_path, {"lr": 0.2, "steps": 7, "optimizer": "sgd", "momentum": 0.9, "warmup": 0.25}
    )
    own = phase_arguments(args, phase, validation=[])
    assert own.output_dir == str(tmp_path / "out" / "phase-1-head")
    assert (own.learning_rate, own.max_steps, own.optim_args) == (0.2, 7, "momentum=0.9")
    assert own.get_warmup_steps(8) == 2
    assert own.eval_strategy == own.logging_strategy == "epoch"
    assert (args.max_steps, args.optim_args, args.eval_strategy) == (-1, None, "no")
    assert phase_arguments(args, phase).eval_strategy == "no"


def test_evaluation_and_logging_by_steps_are_kept_where_asked_for(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 3}
    args, phase = one(tmp_path, {}, **options)
    own = phase_arguments(args, phase, validation=[])
    assert (own.eval_strategy, own.logging_strategy) == ("steps", "steps")


def test_no_phase_has_the_seed_of_another_or_of_a_repeat(tmp_path):
    backbone = network().backbone
    seeds = set()
    for seed in range(20):
        args = arguments(tmp_path, seed=seed)
        phases = [{"train": "head", "name": "a"}, {"train": "all"}, {"train": "head", "name": "b"}]
        for phase in resolved_phases(phases, args, backbone):
            seeds.add(phase_arguments(args, phase).seed)
    assert len(seeds) == 60
    assert phase_arguments(arguments(tmp_path, seed=3), phase).seed < 2**32


def recipe(**options):
    return Recipe(name="small", phases=(PhaseSpec("head", epochs=1),), **options)


def test_a_recipe_as_arguments(tmp_path):
    args = training_arguments(recipe(seed=4, precision="bf16", workers=2), tmp_path)
    assert (args.seed, args.bf16, args.fp16, args.dataloader_num_workers) == (4, True, False, 2)
    assert args.save_strategy == "no"
    assert args.report_to == []
    assert training_arguments(recipe(), tmp_path).bf16 is False
    assert NAMES


def test_fp16_without_an_accelerator_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(UserError, match="fp16 needs an accelerator; write fp32 or bf16"):
        training_arguments(recipe(precision="fp16"), tmp_path)


@pytest.mark.parametrize("text", ["10m", "0", "-5", "1.5"])
def test_a_time_to_wait_that_is_no_number_is_refused_in_one_line(tmp_path, monkeypatch, text):
    monkeypatch.setenv("HF_TRANSFER_PEER_SECONDS", text)
    with pytest.raises(UserError, match=f"HF_TRANSFER_PEER_SECONDS is '{text}'; set it to whole s"):
        training_arguments(recipe(), tmp_path)


def test_compile_and_gradient_checkpointing_reach_the_trainer(tmp_path, monkeypatch):
    recipe = Recipe(name="small", phases=(PhaseSpec("head", epochs=1),))
    plain = training_arguments(recipe, tmp_path)
    assert not plain.torch_compile
    assert not plain.activation_checkpointing
    both = training_arguments(replace(recipe, compile=True, gradient_checkpointing=True), tmp_path)
    assert both.torch_compile
    assert both.activation_checkpointing
    monkeypatch.setattr("hf_transfer.training.arguments.compiler", lambda: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        training_arguments(replace(recipe, compile=True), tmp_path)


def test_what_accelerate_launch_was_told_changes_no_run(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    args = training_arguments(recipe(), tmp_path)
    made = TransferTrainer(network(), args, [{"train": "head"}], train_dataset=images())
    assert made.accelerator.mixed_precision == "no"
    assert made.accelerator.state.dynamo_plugin.backend.value == "NO"


def test_gradient_checkpointing_is_refused_by_a_network_that_has_none(tmp_path):
    args = arguments(tmp_path / "out", activation_checkpointing=True)
    check_model(load_backbone("timm/test_vit", ["a", "b"], pretrained=False), args)
    with pytest.raises(
        UserError, match="torchvision/alexnet does not support gradient checkpointing"
    ):
        check_model(load_backbone("torchvision/alexnet", ["a", "b"], pretrained=False), args)
