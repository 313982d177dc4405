"""The exact head of several labels and of numbers: the optima that scikit-learn finds."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from small import NAMES, RESNET, SOLVE, features_of, images, trained

from hf_transfer.backbones.load import load_backbone
from hf_transfer.data.image_set import ImageSet
from hf_transfer.recipe.load import parse_recipe
from hf_transfer.training.solver import STRENGTHS, fold_pairs, half_scale
from hf_transfer.training.solver_targets import solve_labels, solve_numbers


def rows(count=120, sides=9, noise=1.0, seed=0):
    """Return features of different scales, labels (N, 3) and numbers (N, 2) that follow them."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, sides))
    told = features @ random.normal(size=(sides, 5)) + noise * random.normal(size=(count, 5))
    labels = (told[:, :3] > [0, 1, -2]).astype(float)
    return features * 3.0 ** random.uniform(-1, 1, sides) + 5, labels, told[:, 3:]


def standard(features):
    return (features - features.mean(0)) / half_scale(features)


def answers(solution, features):
    return features @ solution.weight.T + solution.bias


@pytest.mark.parametrize("presence", [None, np.array([3.0, 1.0, 0.5])])
def test_each_label_is_scikit_learns_logistic_regression(presence):
    features, labels, _ = rows()
    found = solve_labels(features, labels, presence_weights=presence)
    assert found.converged
    for place, truth in enumerate(labels.T):
        weights = None if presence is None else np.where(truth > 0, presence[place], 1.0)
        exact = LogisticRegression(C=found.strength, tol=1e-10, max_iter=10_000)
        exact.fit(standard(features), truth, sample_weight=weights)
        expected = exact.decision_function(standard(features))
        assert np.allclose(answers(found, features)[:, place], expected, atol=2e-3)


@pytest.mark.parametrize("count", [120, 30], ids=["more images than features", "fewer"])
def test_numbers_are_scikit_learns_ridge_regression(count):
    features, _, numbers = rows(count, sides=40)
    found = solve_numbers(features, numbers)
    exact = Ridge(alpha=1 / found.strength).fit(standard(features), numbers)
    assert np.allclose(answers(found, features), exact.predict(standard(features)), atol=1e-6)


def ridge(strength, features, numbers, inside, outside):
    exact = Ridge(alpha=1 / strength).fit(features[inside], numbers[inside])
    return ((exact.predict(features[outside]) - numbers[outside]) ** 2).mean()


def logistic(strength, features, labels, inside, outside):
    lost = []
    for truth in labels.T:
        exact = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000)
        exact.fit(features[inside], truth[inside])
        logits = exact.decision_function(features[outside])
        lost.append((np.logaddexp(0, logits) - truth[outside] * logits).mean())
    return np.mean(lost)


@pytest.mark.parametrize("task", ["labels", "numbers"])
def test_the_strength_is_that_of_an_exhaustive_cross_validation(task):
    features, labels, numbers = rows(noise=4.0)
    targets, alone = (labels, logistic) if task == "labels" else (numbers, ridge)
    found = (solve_labels if task == "labels" else solve_numbers)(features, targets)
    pairs = fold_pairs(len(features), None, 0)
    losses = [
        np.mean([alone(strength, standard(features), targets, *pair) for pair in pairs])
        for strength in STRENGTHS
    ]
    assert 0 < int(np.argmin(losses)) < len(STRENGTHS) - 1
    assert found.strength == STRENGTHS[int(np.argmin(losses))]
    assert found.validated == pytest.approx(min(losses), rel=1e-2)


def test_every_image_is_predicted_once_and_its_views_stay_together():
    pairs = fold_pairs(60, np.tile(np.arange(20), 3), 0)
    assert sorted(np.concatenate([outside for _, outside in pairs])) == list(range(60))
    for inside, outside in pairs:
        assert not {row % 20 for row in inside} & {row % 20 for row in outside}
    assert fold_pairs(3, np.zeros(3, int), 0) == []  # one image: nothing to predict from


def test_a_label_that_all_images_have_or_none_is_answered_alike_for_all():
    features, labels, _ = rows()
    labels[:, 1], labels[:, 2] = 1, 0
    found = solve_labels(features, labels)
    assert not found.weight[1:].any()
    assert found.bias[1:] == pytest.approx([np.log(121), -np.log(121)])
    alone = solve_labels(features, labels[:, :1])
    assert np.allclose(answers(found, features)[:, 0], answers(alone, features)[:, 0], atol=2e-3)


def test_numbers_without_any_spread_and_a_single_image_have_a_solution():
    features, labels, numbers = rows()
    assert answers(solve_numbers(features, np.ones_like(numbers)), features) == pytest.approx(1.0)
    one = solve_numbers(features[:1], numbers[:1])
    assert answers(one, features[:1]) == pytest.approx(numbers[:1])
    assert np.isfinite(solve_labels(features[:1], labels[:1]).bias).all()


def labelled(task, stored):
    """Return the images with labels (N, 3) of a task that follow their classes."""
    flags = np.eye(3)[stored.labels]
    targets = np.minimum(flags + np.roll(flags, 1, 0), 1) if task == "multi_label" else flags - 0.5
    return ImageSet(stored.pixels, targets.astype(np.float32), NAMES, stored.files)


@pytest.mark.parametrize(
    ("task", "solve"), [("multi_label", solve_labels), ("regression", solve_numbers)]
)
def test_a_solve_phase_writes_the_optimum_of_the_live_networks_features(tmp_path, task, solve):
    stored = labelled(task, images())
    model = load_backbone(RESNET, NAMES, pretrained=False, image_size=32, task=task)
    options = {"train_dataset": stored, "eval_dataset": labelled(task, images(12, seed=1))}
    done = trained(tmp_path, [SOLVE], model, **options)
    features, logits = features_of(model, stored)
    expected = solve(features, stored.labels, seed=done.args.seed)
    assert np.allclose(logits.numpy(), answers(expected, features), atol=2e-3)
    (report,) = done.reports
    assert report.history[0]["loss"] == pytest.approx(expected.loss, rel=1e-3)
    assert report.solve == "lbfgs"
    assert torch.isfinite(logits).all()


def test_presence_weights_move_the_solution_towards_the_label(tmp_path):
    stored = labelled("multi_label", images())
    stored.labels = np.random.default_rng(0).permutation(stored.labels)  # nothing to be sure of

    def share(weights):
        model = load_backbone(RESNET, NAMES, pretrained=False, image_size=32, task="multi_label")
        options = {"train_dataset": stored, "eval_dataset": None, "class_weights": weights}
        done = trained(tmp_path, [SOLVE], model, **options)
        return features_of(done.model, stored)[1][:, 0].sigmoid().mean()

    assert share([9.0, 1.0, 1.0]) > share(None) + 0.1


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_a_recipe_may_solve_for_the_head_of_the_task(task):
    text = f"task: {task}\nbackbone: {RESNET}\ndata: {{path: a.csv}}\n"
    assert parse_recipe(text + "phases: [{train: head, solve: lbfgs}]", "a.yaml").phases[0].solve
