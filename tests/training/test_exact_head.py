"""The exact head: the optimum that scikit-learn finds, written into the network, calibrated."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sample_report import sample_report
from sklearn.linear_model import LogisticRegression
from small import ALL, HEAD, SOLVE, VIT, alexnet_like, features_of, images, network, state, trained
from torch import nn

from hf_transfer.base.errors import UserError
from hf_transfer.progress import EpochLines
from hf_transfer.results.page import report_page
from hf_transfer.training import exact_head
from hf_transfer.training.solver import FOLDS, STRENGTHS, _folds, half_scale, solve_head


def blobs(rows=150, sides=8, classes=3, noise=1.0, seed=0):
    """Return features of different scales and their classes, which overlap."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centres = random.normal(size=(classes, sides))
    features = centres[labels] + noise * random.normal(size=(rows, sides))
    return features * 5.0 ** random.uniform(-0.5, 0.5, sides) + 5, labels


def chances(solution, features):
    logits = features @ solution.weight.T + solution.bias
    logits -= logits.max(1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def gradient(solution, features, labels, weights=None):
    """Return the gradient of the regularised loss in the solver's own features."""
    mean, scale = features.mean(0), half_scale(features)
    standard = (features - mean) / scale
    weights = np.ones(len(labels)) if weights is None else weights
    wrong = (chances(solution, features) - np.eye(3)[labels]) * weights[:, None]
    by_weight = wrong.T @ standard + solution.weight * scale / solution.strength
    return np.concatenate([by_weight, wrong.sum(0)[:, None]], 1) / weights.sum()


def test_the_solution_is_scikit_learns_optimum_at_its_strength():
    features, labels = blobs()
    found = solve_head(features, labels, 3)
    standard = (features - features.mean(0)) / half_scale(features)
    exact = LogisticRegression(C=found.strength, tol=1e-10, max_iter=10_000).fit(standard, labels)
    assert np.allclose(chances(found, features), exact.predict_proba(standard), atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_at_the_solution_is_zero(weighted):
    features, labels = blobs(noise=2.0)
    of_class = np.array([3.0, 1.0, 0.5]) if weighted else None
    found = solve_head(features, labels, 3, class_weights=of_class)
    assert found.converged
    weights = of_class[labels] if weighted else None
    assert np.abs(gradient(found, features, labels, weights)).max() < 1e-4
    elsewhere = solve_head(features, labels, 3, class_weights=np.array([1.0, 2.0, 1.0]))
    assert np.abs(gradient(elsewhere, features, labels, weights)).max() > 1e-3  # the test can fail


def test_cross_validation_regularises_noise_more_than_signal():
    signal = solve_head(*blobs(noise=0.3), 3)
    random = np.random.default_rng(0)
    noise = solve_head(random.normal(size=(60, 40)), np.arange(60) % 3, 3)
    assert noise.strength < signal.strength
    assert noise.validated == pytest.approx(np.log(3), rel=0.1)  # knows that it knows nothing
    assert STRENGTHS[0] <= noise.strength <= STRENGTHS[-1]


def test_the_strength_is_that_of_an_exhaustive_cross_validation():
    features, labels = blobs(noise=2.5)
    found = solve_head(features, labels, 3)
    standard = (features - features.mean(0)) / half_scale(features)
    folds = _folds(labels, None, 0)
    losses = []
    for strength in STRENGTHS:
        lost = []
        for fold in range(FOLDS):
            model = LogisticRegression(C=strength, tol=1e-6, max_iter=5000)
            model.fit(standard[folds != fold], labels[folds != fold])
            guessed = model.predict_proba(standard[folds == fold])
            lost.append(-np.log(guessed[range(len(guessed)), labels[folds == fold]]).mean())
        losses.append(np.mean(lost))
    assert found.strength == STRENGTHS[int(np.argmin(losses))]
    assert found.validated == pytest.approx(min(losses), rel=1e-2)


def test_a_unit_that_was_nearly_silent_in_training_does_not_decide_over_a_new_image():
    features, labels = blobs(rows=260, noise=2.0)
    silent = np.zeros((260, 5))
    silent[7] = 1e-4  # a unit that is zero but for a trace in one image
    found = solve_head(np.hstack([features, silent])[:200], labels[:200], 3)
    plain = solve_head(features[:200], labels[:200], 3)
    loud = np.hstack([features, np.ones((260, 5)) * features.std()])[200:]
    lost = -np.log(chances(found, loud)[range(60), labels[200:]]).mean()
    usual = -np.log(chances(plain, features[200:])[range(60), labels[200:]]).mean()
    assert lost < usual + 0.5


def test_its_probabilities_are_calibrated_on_other_rows():
    """Of what it says with a mean confidence c, a share of c is right, within 5 points."""
    features, labels = blobs(rows=6000, noise=2.0)
    found = solve_head(features[:300], labels[:300], 3)
    said = chances(found, features[300:])
    right = (said.argmax(1) == labels[300:]).mean()
    assert 0.5 < right < 0.95
    assert said.max(1).mean() == pytest.approx(right, abs=0.05)


def test_views_of_one_image_stay_in_one_fold():
    labels = np.tile(np.arange(30) % 3, 4)
    folds = _folds(labels, np.tile(np.arange(30), 4), 0)
    assert all(len(set(folds[image::30])) == 1 for image in range(30))
    assert np.bincount(folds).tolist() == [24] * FOLDS


def test_groups_that_are_whole_classes_leave_the_strength_at_one():
    features, labels = blobs()
    found = solve_head(features, labels, 3, images=labels)
    assert found.strength == 1.0
    assert np.mean(chances(found, features).argmax(1) == labels) > 0.9


def test_a_class_without_rows_is_never_guessed_and_two_classes_work():
    features, labels = blobs()
    found = solve_head(features, np.where(labels == 1, 2, labels), 3)
    said = chances(found, features)
    assert said[:, 1].max() < 0.01
    assert np.allclose(said.sum(1), 1)
    with pytest.raises(ValueError, match="one class"):
        solve_head(features, np.zeros(len(labels), int), 3)


def test_it_is_deterministic():
    one, two = (solve_head(*blobs(), 3, seed=4) for _ in range(2))
    assert np.array_equal(one.weight, two.weight)
    assert np.array_equal(one.bias, two.bias)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_no_bit(threads, monkeypatch):
    usual = solve_head(*blobs(), 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found = solve_head(*blobs(), 3)
    assert found.strength == usual.strength
    assert np.array_equal(found.weight, usual.weight)


def test_a_solve_phase_writes_the_optimum_of_the_live_networks_features(tmp_path):
    model, stored = network(), images()
    start = state(model)
    done = trained(tmp_path, [SOLVE], model, train_dataset=stored)
    features, logits = features_of(model, stored)
    expected = solve_head(features, stored.labels, 3, seed=done.args.seed)
    probabilities = torch.softmax(logits, 1).numpy()
    assert np.allclose(probabilities, chances(expected, features), atol=1e-4)
    moved = {name for name, value in state(model).items() if not torch.equal(value, start[name])}
    assert moved == {f"{model.backbone.prefix}fc.weight", f"{model.backbone.prefix}fc.bias"}
    (report,) = done.reports
    assert report.features == "cached"
    assert report.metrics["accuracy"] > 1 / 3
    again = trained(tmp_path / "again", [SOLVE], network(), train_dataset=images())
    assert all(torch.equal(value, state(again.model)[n]) for n, value in state(model).items())


def test_images_of_one_group_judge_no_strength_that_others_of_it_have_seen(tmp_path):
    plain, grouped = images(), images()
    grouped.groups = np.arange(len(grouped)) // 3 % 4
    features, _ = features_of(network(), plain)
    for stored, wrong in ((plain, grouped), (grouped, plain)):
        done = trained(tmp_path / str(stored is plain), [SOLVE], train_dataset=stored)
        found = done.reports[0].history[0]["cross_validated"]
        right, other = (
            solve_head(features, stored.labels, 3, images=each.groups, seed=done.args.seed)
            for each in (stored, wrong)
        )
        assert found == pytest.approx(right.validated, rel=1e-3)
        assert found != pytest.approx(other.validated, rel=1e-3)


def test_a_solved_head_is_told_in_the_solvers_steps_and_not_in_epochs_or_rates(tmp_path):
    lines = []
    (report,) = trained(tmp_path, [SOLVE], callbacks=[EpochLines(lines.append)]).reports
    assert report.solve == "lbfgs"
    assert (report.rates, report.best_epoch) == ((), None)
    strength = report.history[0]["regularisation"]
    start = f"  solved in {report.steps} steps, regularisation {strength:.3g}, loss "
    assert len(lines) == 1
    assert lines[0].startswith(start)
    page = report_page(replace(sample_report(), phases=(report,)))
    assert f"solved in {report.steps} steps" in page
    assert "<h2>Training</h2>" not in page


def test_a_head_is_solved_for_and_fine_tuned_in_bf16_as_in_fp32(tmp_path):
    low, full = (
        trained(tmp_path / str(bf16), [SOLVE, ALL], bf16=bf16).reports for bf16 in (True, False)
    )
    assert [report.solve for report in low] == ["lbfgs", None]
    assert low[0].metrics["loss"] == pytest.approx(full[0].metrics["loss"], abs=0.01)
    assert low[1].checks["moved"] == full[1].checks["moved"]


def test_it_is_no_worse_than_many_epochs_of_steps(tmp_path):
    steps = trained(tmp_path / "steps", [{**HEAD, "epochs": 20, "best": "last"}])
    exact = trained(tmp_path / "exact", [SOLVE])
    assert exact.reports[0].metrics["loss"] <= steps.reports[0].metrics["loss"] + 0.02


def test_class_weights_move_the_solution_towards_the_heavy_class(tmp_path):
    stored = images()
    stored.labels = np.random.default_rng(0).permutation(stored.labels)  # nothing to be sure of

    def share(weights):
        done = trained(tmp_path, [SOLVE], class_weights=weights, train_dataset=stored)
        return torch.softmax(features_of(done.model, stored)[1], 1)[:, 0].mean()

    assert share(torch.tensor([9.0, 1.0, 1.0])) > share(None) + 0.1


def test_all_views_of_the_images_are_solved_for(tmp_path, monkeypatch):
    seen = []
    real = exact_head.solve_head
    monkeypatch.setattr(
        exact_head, "solve_head", lambda f, *a, **k: (seen.append(f.shape), real(f, *a, **k))[1]
    )
    trained(tmp_path, [{**SOLVE, "augment": "light", "views": 3}])
    assert seen[0][0] == 3 * 24


class Deep(nn.Module):
    """A network with a head of two layers."""

    def __init__(self, second: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.scale = nn.Conv2d(3, 8, 7, 16), scale
        last = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        self.head = last if second else nn.Linear(8, 3, bias=second is None)

    def forward(self, pixel_values):
        return self.head(self.body(pixel_values).mean((2, 3))) * self.scale


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: Deep(), "works for a head of one layer, and this one has 2"),
        (lambda: Deep(second=False), "needs a head of one dense layer with a bias, and"),
    ],
)
def test_a_head_that_is_more_than_one_dense_layer_is_refused_in_one_line(tmp_path, model, says):
    stored = images(6, size=224)
    with pytest.raises(UserError, match=f"phase .*: solve: lbfgs {says}.*epochs: 10") as caught:
        trained(
            tmp_path, [SOLVE], model(), head=["head.*"], train_dataset=stored, eval_dataset=stored
        )
    assert "\n" not in str(caught.value)


def test_logits_that_are_not_the_layers_own_are_refused_and_nothing_is_changed(tmp_path):
    model = Deep(second=None, scale=3.0)
    model.head = nn.Linear(8, 3)
    start, stored = state(model), images(6, size=224)
    with pytest.raises(UserError, match="logits that come straight from the head's layer"):
        trained(tmp_path, [SOLVE], model, head=["head.*"], train_dataset=stored, eval_dataset=None)
    assert all(torch.equal(value, start[name]) for name, value in state(model).items())


def test_one_class_is_refused_with_the_phase_before_anything_is_trained(tmp_path):
    stored = images()
    stored.labels = np.zeros_like(stored.labels)
    with pytest.raises(UserError, match="^phase second: solve: lbfgs needs .* two classes"):
        trained(tmp_path, [HEAD, {**SOLVE, "name": "second"}], train_dataset=stored)
    assert not list(tmp_path.rglob("phase-*"))


def test_alexnets_form_is_solved_below_its_last_layer(tmp_path):
    stored = images(12, size=224)
    options = {"head": ["classifier.6.*"], "train_dataset": stored, "eval_dataset": stored}
    done = trained(tmp_path, [SOLVE], alexnet_like(), **options)
    assert done.reports[0].metrics["accuracy"] >= 1 / 3


def test_a_fine_tuning_phase_goes_on_from_the_exact_head(tmp_path):
    """lp_ft, its first phase solved: the second starts at the solution's loss, and needs no word
    that its head is cold."""
    fine = {"train": "all", "epochs": 1, "lr": 1e-5, "batch_size": 8}
    done = trained(tmp_path, [SOLVE, fine], network(VIT))
    first, second = done.reports
    assert first.name == "head"
    assert second.metrics["loss"] == pytest.approx(first.metrics["loss"], abs=0.05)
