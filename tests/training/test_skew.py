"""Uneven classes: weights, losses and orders that make up for them do what their papers say."""

import math

import numpy as np
import pytest
import torch
from children import log, results, together
from small import COLD, CONVNEXT, HEAD, NAMES, Pixels, changed, images, network, state, trained
from small import trainer as small_trainer

from hf_transfer.base.errors import UserError
from hf_transfer.data.image_set import ImageSet
from hf_transfer.recipe.specs import PhaseSpec
from hf_transfer.training.skew import BalancedOrder, class_weights, objective

SOLVED = {"train": "head", "solve": "lbfgs"}


def uneven(counts=(20, 6, 2)):
    """Images of which there are so many of each class."""
    stored = images(3 * max(counts))
    rows = np.concatenate([np.flatnonzero(stored.labels == i)[:n] for i, n in enumerate(counts)])
    return stored.subset(rows)


# --- weights ---------------------------------------------------------------------------------


def test_balanced_weights_let_every_class_count_the_same():
    balanced = class_weights("balanced", NAMES, uneven())
    torch.testing.assert_close(balanced * torch.tensor([20.0, 6, 2]), torch.full((3,), 28 / 3))
    torch.testing.assert_close(class_weights("sqrt", NAMES, uneven()), balanced.sqrt())


def test_weights_may_be_given_by_label_and_name_what_is_no_label():
    assert class_weights({"dog": 3}, NAMES, uneven()).tolist() == [1, 3, 1]
    with pytest.raises(UserError, match="there is no label 'dgo'; nearest: dog"):
        class_weights({"dgo": 3}, NAMES, uneven())
    with pytest.raises(UserError, match="'ballanced' is neither balanced nor sqrt"):
        class_weights("ballanced", NAMES, uneven())


def test_what_counts_labels_says_so_where_it_cannot(tmp_path):
    own = Pixels(images(), network())
    del own.labels
    with pytest.raises(UserError, match="class_weights: sqrt needs a training set whose labels"):
        small_trainer(tmp_path, [HEAD], class_weights="sqrt", train_dataset=own)


@pytest.mark.parametrize(
    ("loss", "weights", "task", "own", "says"),
    [
        ("hinge", None, "classification", False, "no loss 'hinge'"),
        ("logit_adjusted", None, "multi_label", False, "logit_adjusted cannot be combined with ta"),
        ("focal", None, "regression", False, "loss: focal cannot be combined with task: regress"),
        ("squared_error", None, "classification", False, "squared_error cannot be combined"),
        ("balanced", [1, 1, 1], "classification", False, "class_weights cannot be combined with"),
        ("focal", None, "classification", True, "loss: focal would change the loss, which is your"),
        ("cross_entropy", "sqrt", "classification", True, "class_weights would change the loss"),
    ],
)
def test_what_contradicts_itself_is_refused(loss, weights, task, own, says):
    with pytest.raises(UserError, match=says) as error:
        objective(loss, weights, task, NAMES, uneven(), own)
    assert "\n" not in str(error.value)


# --- losses ----------------------------------------------------------------------------------


def test_the_focal_loss_is_that_of_its_paper():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    p = math.exp(2) / (math.exp(2) + 1)
    expected = -((1 - p) ** 2) * math.log(p) - 0.5**2 * math.log(0.5)
    of_classes = objective("focal", None, "classification", ("a", "b"), None, False)
    assert of_classes.total(logits, labels).item() == pytest.approx(expected, rel=1e-6)
    soft = torch.nn.functional.one_hot(labels).float()
    torch.testing.assert_close(of_classes.total(logits, soft), of_classes.total(logits, labels))
    of_labels = objective("focal", None, "multi_label", ("a",), None, False)
    one, there = torch.tensor([[2.0]]), torch.tensor([[1.0]])
    assert of_labels.total(one, there).item() == pytest.approx(-((1 - p) ** 2) * math.log(p))


def test_adjusted_logits_are_those_plus_the_logarithms_of_the_classes_shares():
    made = objective("logit_adjusted", None, "classification", NAMES, uneven(), False)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    shares = torch.tensor([20.0, 6, 2]) / 28
    plain = objective("cross_entropy", None, "classification", NAMES, uneven(), False)
    torch.testing.assert_close(
        made.total(logits, labels), plain.total(logits + shares.log(), labels)
    )


def test_an_adjusted_head_is_the_exact_one_without_the_classes_shares(tmp_path):
    own = {"train_dataset": uneven(), "eval_dataset": None}
    plain = trained(tmp_path / "a", [SOLVED], **own).model.timm_model.fc
    adjusted = trained(tmp_path / "b", [SOLVED], loss="logit_adjusted", **own).model.timm_model.fc
    shares = torch.tensor([20.0, 6, 2]) / 28
    torch.testing.assert_close(adjusted.weight, plain.weight)
    torch.testing.assert_close(adjusted.bias, plain.bias - shares.log())


@pytest.mark.parametrize("loss", ["balanced", "focal", "logit_adjusted"])
def test_each_loss_changes_what_is_learned_from_features_as_from_images(tmp_path, loss):
    """Cached features and live images come to the same."""
    own = {"train_dataset": uneven(), "loss": loss}
    ends = [
        trained(tmp_path / kind, [{**HEAD, "features": kind}], **own) for kind in ("cached", "live")
    ]
    assert [end.reports[0].features for end in ends] == ["cached", "live"]
    for name, value in state(ends[0].model).items():
        torch.testing.assert_close(value, state(ends[1].model)[name], rtol=1e-4, atol=1e-5)
    usual = trained(tmp_path / "usual", [HEAD], train_dataset=uneven())
    assert changed(state(usual.model), state(ends[0].model))


def test_a_head_is_not_solved_for_by_the_focal_loss(tmp_path):
    with pytest.raises(UserError, match="phase head: solve: lbfgs minimises cross-entropy"):
        trained(tmp_path, [SOLVED], loss="focal")


# --- the order of images ---------------------------------------------------------------------


def test_an_epoch_has_as_many_images_of_each_class_and_all_in_their_turn():
    labels = uneven().labels
    order = BalancedOrder(labels, seed=3)
    drawn = list(order)
    assert len(drawn) == len(order) == 28
    assert sorted(np.bincount(labels[drawn])) == [9, 9, 10]
    assert np.bincount(drawn, minlength=28)[labels == 2].min() >= 4  # the two of the rarest
    assert np.bincount(drawn, minlength=28)[labels == 0].max() == 1
    assert set(drawn) | {row for _ in range(9) for row in order} == set(range(28))


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        made = BalancedOrder(uneven().labels, seed)
        made.set_epoch(epoch)
        return list(made)

    assert order(1, 4) == order(1, 4)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_a_class_without_images_is_left_out():
    assert sorted(BalancedOrder(np.array([0, 0, 2, 2]), 0)) == [0, 1, 2, 3]


def test_two_processes_take_the_images_of_one_with_twice_the_batch(tmp_path):
    ends = []
    for count, batch_size in ((2, 3), (1, 6)):
        own = {"batch_size": batch_size, "sampler": "balanced", "optimizer": "sgd", "lr": 0.05}
        out = tmp_path / f"of-{count}"
        options = {"backbone": CONVNEXT, "dropout": 0.0, "images": 22}
        assert together(count, out, [{**HEAD, **own}, {**COLD, **own}], options) == [0] * count, (
            log(out)
        )
        ends.append(results(out)[0])
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)


def test_only_classes_can_be_drawn_evenly():
    numbers = ImageSet.from_arrays(np.zeros((4, 8, 8, 3), np.uint8), np.zeros((4, 2), np.float32))
    with pytest.raises(UserError, match="class_weights cannot be combined with task: regression"):
        objective("squared_error", "sqrt", "regression", ("x", "y"), numbers, False)
    assert PhaseSpec("head", epochs=1, sampler="balanced").sampler == "balanced"
