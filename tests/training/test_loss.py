"""The losses: sums that add up whatever the batches, and agree with torch's own means."""

import pytest
import torch
from torch.nn import functional as F

from hf_transfer.recipe.tasks import TASKS
from hf_transfer.results.metrics.by_name import MEASURES
from hf_transfer.training import loss
from hf_transfer.training.loss import LOSSES


def batch(task: str, count: int = 12, labels: int = 4):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, labels, generator=generator)
    if task == "classification":
        return logits, torch.arange(count) % labels
    numbers = torch.randn(count, labels, generator=generator)
    return logits, (numbers > 0).float() if task == "multi_label" else numbers


MEANS = {
    "classification": F.cross_entropy,
    "multi_label": F.binary_cross_entropy_with_logits,
    "regression": F.mse_loss,
}


@pytest.mark.parametrize("task", MEANS)
def test_sums_over_any_batches_add_up_to_the_mean_over_all(task):
    logits, target = batch(task)
    parts = [LOSSES[task](logits[rows], target[rows]) for rows in (slice(5), slice(5, 12))]
    torch.testing.assert_close(sum(parts) / target.numel(), MEANS[task](logits, target))


def test_presence_weights_multiply_the_loss_of_what_is_there():
    logits, target = batch("multi_label")
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weights)
    found = LOSSES["multi_label"](logits, target, weights) / target.numel()
    torch.testing.assert_close(found, expected)


def test_smoothing_of_several_labels_moves_targets_towards_one_half():
    logits, target = batch("multi_label")
    expected = F.binary_cross_entropy_with_logits(logits, target * 0.9 + 0.05, reduction="sum")
    torch.testing.assert_close(LOSSES["multi_label"](logits, target, None, 0.1), expected)


def test_one_number_an_image_may_come_flat():
    logits, target = torch.randn(5, 1), torch.randn(5)
    found = loss.squared_error_sum(logits, target)
    torch.testing.assert_close(found, (logits[:, 0] - target).pow(2).sum())


def test_every_task_has_a_loss_and_a_measure_and_leads_with_a_metric_it_gives():
    assert set(TASKS) == set(LOSSES) == set(MEASURES)
    for name, task in TASKS.items():
        assert task.name == name
        assert task.metrics[0] == "loss"
        assert task.headline in task.metrics
