"""The losses of pretexts, against what their papers define and against collapse."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_transfer.inputs.augmentation import uniforms
from hf_transfer.recipe.tasks import SHIFTS
from hf_transfer.results.metrics.pretexts import shift_metrics
from hf_transfer.training.pretext_loss import (
    CODE_STREAM,
    TEMPERATURE,
    contrastive_sum,
    exemplar_sum,
    motion_sum,
    redundancy_sum,
)
from hf_transfer.training.step_loss import by_image


def outputs(images: int = 8, size: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, 2 * size, generator=torch.Generator().manual_seed(seed))


def test_outputs_of_pictures_are_sorted_by_image():
    logits = torch.arange(12).reshape(6, 2)  # two pictures of three images
    assert by_image(logits, 3).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert by_image(logits, 6) is logits


def test_contrastive_is_the_cross_entropy_of_the_other_picture_among_all_others():
    one, two = (F.normalize(part, dim=1) for part in outputs().chunk(2, 1))
    both = torch.cat([one, two])
    total = 0.0
    for i, row in enumerate(both):
        others = [j for j in range(16) if j != i]
        alike = both[others] @ row / TEMPERATURE
        total += torch.logsumexp(alike, 0) - both[(i + 8) % 16] @ row / TEMPERATURE
    assert contrastive_sum(outputs()).item() == pytest.approx(total.item() / 2, rel=1e-5)


def test_contrastive_and_redundancy_do_not_ask_which_picture_is_first():
    one, two = outputs().chunk(2, 1)
    turned = torch.cat([two, one], 1)
    for loss in (contrastive_sum, redundancy_sum):
        assert loss(turned).item() == pytest.approx(loss(outputs()).item(), rel=1e-5)


def test_redundancy_is_least_where_pictures_agree_outputs_vary_and_none_says_the_same_twice():
    def of(one, two):
        return redundancy_sum(torch.cat([one, two], 1)).item() / len(one)

    apart = torch.linalg.qr(torch.randn(64, 8, generator=torch.Generator().manual_seed(1)))[0]
    apart = (apart - apart.mean(0)) / apart.std(0)
    best = of(apart, apart)
    assert best < 0.5
    assert of(apart, apart.roll(1, 0)) > best + 10  # the pictures disagree
    assert of(apart * 0, apart * 0) > best + 10  # all images are one
    same = apart[:, :1].expand(64, 8)
    assert of(same, same) > best + 1  # all outputs say the same


def test_a_class_of_exemplars_is_a_word_of_its_own_and_the_head_stays_as_it_is():
    places = torch.arange(10_000)
    bits = uniforms(places, 0, 0, 64, CODE_STREAM) < 0.5
    assert len(torch.unique(bits, dim=0)) == 10_000
    word = bits[:8].float().repeat(1, 2) * 40 - 20
    assert exemplar_sum(word, places[:8]).item() < 1e-6
    assert exemplar_sum(word, places[1:9]).item() > 8


def test_motion_is_told_by_a_linear_head_that_reads_both_pictures():
    shift = torch.arange(SHIFTS**2)
    across, down = F.one_hot(shift // SHIFTS, SHIFTS), F.one_hot(shift % SHIFTS, SHIFTS)
    told = torch.cat([across, down], 1).float() * 20
    nothing = torch.zeros_like(told)
    first = torch.cat([told, nothing, nothing, nothing], 1)  # as the first picture says
    second = torch.cat([nothing, nothing, nothing, told], 1)
    elsewhere = torch.cat([nothing, told, told, nothing], 1)  # outputs for the other place
    assert motion_sum(first, shift).item() < 1e-4
    assert motion_sum(second, shift).item() < 1e-4
    assert motion_sum(elsewhere, shift).item() == pytest.approx(25 * math.log(SHIFTS))
    assert shift_metrics(first, shift)["accuracy"] == 1.0
    assert shift_metrics(elsewhere, shift)["accuracy"] == pytest.approx(0.2)


@pytest.mark.parametrize("loss", [contrastive_sum, redundancy_sum])
def test_a_batch_of_one_image_has_a_finite_loss_and_gradient(loss):
    one = outputs(images=1).requires_grad_()
    loss(one).backward()
    assert torch.isfinite(one.grad).all()
