"""The Trainer is a seam: small, and nobody else knows its private parts."""

import ast
import inspect
import re
from pathlib import Path

from small import HEAD, network, trainer
from transformers import Trainer

import hf_transfer
from hf_transfer.training import trainer as seam
from hf_transfer.training.trainer import TransferTrainer

SOURCES = sorted(Path(hf_transfer.__file__).parent.rglob("*.py"))
LINES, ATTRIBUTES = 250, 10


def test_every_method_that_is_overridden_is_still_called_upstream():
    """An override that upstream no longer calls would be dead, without an error."""
    own = {
        name
        for name, value in vars(TransferTrainer).items()
        if inspect.isfunction(value) and name in vars(Trainer) and name != "__init__"
    }
    assert own == {
        "_get_dataloader",
        "_get_train_sampler",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_prepare_inputs",
        "_save_checkpoint",
        "_save_optimizer_and_scheduler",
        "compute_loss",
        "create_model_card",
        "create_optimizer",
        "create_scheduler",
        "evaluation_loop",
        "floating_point_ops",
        "get_batch_samples",
        "hyperparameter_search",
        "init_hf_repo",
        "log",
        "push_to_hub",
        "save_model",
        "train",
    }
    source = inspect.getsource(Trainer)
    for name in own - {"train", "hyperparameter_search"}:  # which users call
        assert f"self.{name}" in source, name
    # What is leaned on besides, each read or set here because upstream does the same.
    for text in (
        "self._created_lr_scheduler",
        "self.optimizer_cls_and_kwargs",
        "self._wrap_model(self.model_wrapped)",
        "self._globalstep_last_logged",
        "self._tr_loss",
        "self._eval_dataloaders",
        "self.current_gradient_accumulation_steps",
        "run_dir = self.args.output_dir",
        "len(self.accelerator._models) == 0",
        "self.label_smoother is not None",
    ):
        assert text in source, text
    step = inspect.getsource(Trainer.training_step)
    assert step.index("model.train()") < step.index("self._prepare_inputs(")
    assert step.index("self._prepare_inputs(") < step.index("self.compute_loss(")
    inner = inspect.getsource(Trainer._inner_training_loop)
    assert inner.index("self._tr_loss =") < inner.index("on_train_begin(")


def test_it_is_short_and_has_few_attributes_of_its_own(tmp_path):
    made = trainer(tmp_path, [HEAD])
    plain = Trainer(network(), made.args)
    own = set(vars(made)) - set(vars(plain))
    assert len(own) <= ATTRIBUTES, own
    assert len(inspect.getsource(seam).splitlines()) <= LINES


def private_of_a_trainer(tree):
    """Yield the private attributes that are asked of a name that stands for a Trainer."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
            owner = node.value
            name = getattr(owner, "attr", getattr(owner, "id", ""))
            if name == "trainer":
                yield f"line {node.lineno}: {name}.{node.attr}"


def test_private_parts_of_a_trainer_are_found():
    found = private_of_a_trainer(ast.parse("self.trainer._best = trainer._moving()\ntrainer.model"))
    assert list(found) == ["line 1: trainer._best", "line 1: trainer._moving"]


def test_nobody_else_uses_its_private_parts_or_takes_it_for_anything():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\btrainer: Any\b", text), path
        if path != Path(seam.__file__):
            assert not list(private_of_a_trainer(ast.parse(text))), path
