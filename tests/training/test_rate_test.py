"""`lr: auto` finds a rate by a range test, and nothing else in the run knows of it."""

import json
import logging

import numpy as np
import pytest
import torch
from small import ALL, COLD, HEAD, RESNET, VIT, changed, images, network, state, trained, trainer

from hf_transfer.base.errors import UserError
from hf_transfer.recipe.load import parse_phase
from hf_transfer.training.rate_test import LOWEST, STEPS, chosen
from hf_transfer.training.recovery import checkpoints

AUTO = {**COLD, "lr": "auto", "augment": "light"}


@pytest.mark.parametrize("backbone", [RESNET, VIT])
def test_a_run_with_a_found_rate_is_that_with_the_rate_written_bit_for_bit(tmp_path, backbone):
    """Weights, statistics, random numbers and the order of images are as if nothing had been."""
    model = network(backbone, dropout=0.2)
    found = trained(tmp_path / "a", [AUTO], model)
    rate = found.reports[0].rates[0]["lr"]
    written = trained(tmp_path / "b", [{**AUTO, "lr": rate}], network(backbone, dropout=0.2))
    assert changed(state(found.model), state(written.model)) == set()
    assert found.reports[0].metrics == written.reports[0].metrics


def test_the_rate_is_told_and_in_the_report(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        done = trained(tmp_path, [HEAD, {**ALL, "lr": "auto", "layer_decay": 0.5}])
    rates = done.reports[1].rates
    assert all(row["found"] for row in rates)
    assert not any("found" in row for row in done.reports[0].rates)
    assert f"phase all: lr: auto is {rates[0]['lr']:.2g}, by a range test" in caplog.text
    assert min(row["lr"] for row in rates) < rates[0]["lr"]  # the layer decay still holds
    assert LOWEST <= rates[0]["lr"] <= 0.1


def test_adapters_and_a_users_own_loss_are_tried_and_taken_away_again(tmp_path):
    def own(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits, labels)

    phase = {"train": ["lora(r=2)", "head"], "epochs": 2, "lr": "auto", "batch_size": 8}
    model = network(VIT)
    done = trained(tmp_path, [HEAD, phase], model, compute_loss_func=own)
    assert done.reports[1].rates[0]["found"]
    assert not any("lora" in name for name in state(done.model))


def test_a_run_that_is_resumed_has_the_rate_that_it_found(tmp_path):
    first = trained(tmp_path, [AUTO], checkpoint_seconds=1000)
    kept = tmp_path / "phase-1-all" / "rate.json"
    assert json.loads(kept.read_text())["lr"] == first.reports[0].rates[0]["lr"]
    checkpoints.drop(kept.parent, end=True)
    kept.write_text(json.dumps({"lr": 0.5}))
    again = trainer(tmp_path, [AUTO], checkpoint_seconds=1000)
    again.train(resume_from_checkpoint=True)
    assert again.reports[0].rates[0]["lr"] == 0.5


def test_a_tenth_of_the_rate_of_the_lowest_loss_is_chosen():
    rates = np.geomspace(LOWEST, 1.0, STEPS)
    losses = np.concatenate([np.linspace(2, 1, 45), np.linspace(1, 50, STEPS - 45)])
    assert rates[42] / 10 < chosen(losses) < rates[47] / 10
    assert chosen([1.0, 2.0, 9.0, float("nan")]) == LOWEST


def test_what_has_no_length_or_rates_of_its_own_is_refused(tmp_path):
    with pytest.raises(UserError, match="lr: auto cannot be combined with lrs"):
        parse_phase({**AUTO, "lrs": {"head": 1e-3}})

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    phase = {"train": "head", "steps": 3, "lr": "auto"}
    with pytest.raises(UserError, match="phase head: lr: auto needs a training set with a length"):
        trained(tmp_path, [phase], train_dataset=Stream(), eval_dataset=images(6))
