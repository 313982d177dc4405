import numpy as np
import pytest

from hf_transfer.deciding.choosing import (
    Prior,
    best_of,
    chosen_blindly,
    expected_accuracy,
    gain,
    standard_error,
)
from hf_transfer.deciding.folds import folds, pairs

LABELS = np.arange(200) % 2


def logits(right: np.ndarray, sure: float = 2.0) -> np.ndarray:
    """Return logits (N, 2) that are right where `right` says."""
    said = np.where(right, LABELS, 1 - LABELS)
    return sure * np.eye(2)[said]


def right(share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(len(LABELS)) < share


def test_a_gain_above_its_standard_error_is_taken():
    base, better = right(0.6, 0), right(0.6, 0) | right(0.5, 1)
    found = gain(logits(better), logits(base), LABELS)
    assert found.is_real
    assert found.accuracy == pytest.approx(better.mean() - base.mean())
    assert best_of({"head": logits(base), "tuned": logits(better)}, LABELS) == "tuned"


def test_a_gain_that_chance_explains_is_not():
    base = right(0.7, 0)
    other = base.copy()
    other[:5], other[5:9] = ~other[:5], ~other[5:9]
    ways = {"head": logits(base), "tuned": logits(other)}
    assert abs(gain(ways["tuned"], ways["head"], LABELS).accuracy) < 0.04
    assert best_of(ways, LABELS) == "head"


def test_where_one_class_counts_more_what_knows_it_better_is_taken():
    base = np.ones(200, bool)
    base[LABELS == 1] = False  # knows one class alone
    other = base.copy()
    other[LABELS == 1] = True
    other[(LABELS == 0) & (np.arange(200) < 140)] = False
    ways = {"head": logits(base), "other": logits(other)}
    heavy = np.where(LABELS == 0, 5.0, 1.0)
    assert best_of(ways, LABELS) == "other"
    assert best_of(ways, LABELS, weights=heavy) == "head"
    found = gain(ways["other"], ways["head"], LABELS, weights=heavy)
    assert found.accuracy == pytest.approx((1 - 5 * 0.7) / 6)
    assert (
        chosen_blindly(ways, LABELS, np.arange(200) // 2 % 5, weights=heavy) == ways["head"]
    ).all()


def test_each_way_is_judged_by_all_images_that_it_has_predicted():
    """On the 50 images that another way has predicted this one is better, on all it is worse."""
    base = right(0.5, 0)
    worse = np.concatenate([base[:50] | right(0.5, 1)[:50], base[50:] & right(0.5, 1)[50:]])
    some = np.where(np.arange(200)[:, None] < 50, logits(base), np.nan)
    ways = {"head": logits(base), "worse": logits(worse), "short": some}
    assert gain(ways["worse"][:50], ways["head"][:50], LABELS[:50]).is_real
    found = gain(ways["worse"], ways["head"], LABELS, np.arange(200) // 10)
    assert found.images == 200
    assert found.accuracy == pytest.approx(worse.mean() - base.mean())
    assert best_of(ways, LABELS) == "head"
    better = np.where(np.isfinite(some), logits(base | right(0.5, 1)), np.nan)
    of_some = gain(better, ways["head"], LABELS)
    assert of_some == gain(better[:50], ways["head"][:50], LABELS[:50])
    assert best_of({**ways, "short": better}, LABELS) == "short"
    assert best_of({**ways, "short": np.full_like(some, np.nan)}, LABELS) == "head"


def test_an_image_that_the_chosen_way_has_not_predicted_tells_nothing_of_it():
    base, better = right(0.5, 0), right(0.5, 0) | right(0.6, 1)
    some = np.where(np.arange(200)[:, None] < 150, logits(better), np.nan)
    blind = chosen_blindly({"head": logits(base), "tuned": some}, LABELS, np.arange(200) % 5)
    assert np.array_equal(blind, some, equal_nan=True)


def test_the_way_that_does_nothing_is_no_gain():
    base = logits(right(0.7, 0))
    assert not gain(base, base, LABELS).is_real


def test_each_stage_is_held_against_the_one_taken_so_far():
    head, blended = right(0.5, 0), right(0.5, 0) | right(0.5, 1)
    tuned = blended.copy()
    tuned[:3] = ~tuned[:3]
    ways = {"head": logits(head), "blended": logits(blended), "tuned": logits(tuned, 2.01)}
    assert best_of(ways, LABELS, stages=(["blended"], ["tuned"])) == "blended"
    assert best_of(ways, LABELS, stages=([], ["tuned"])) == "tuned"


def test_the_most_accurate_way_is_taken_and_of_equals_the_one_with_the_least_log_loss():
    base = right(0.5, 0)
    better = base | right(0.3, 1)
    best = better | right(0.3, 2)
    ways = {"head": logits(base), "sure": logits(better, 4.0), "best": logits(best)}
    unsure = logits(best)
    unsure[~best] *= 3  # as accurate, and surer where it is wrong
    assert best_of({**ways, "unsure": unsure}, LABELS) == "best"
    assert best_of({"head": ways["head"], "unsure": unsure, "best": ways["best"]}, LABELS) == "best"
    assert best_of({"head": ways["head"], "sure": ways["sure"]}, LABELS) == "sure"


GENTLE, FREE = Prior(0.03, 0.03), Prior(0.0, 0.08)


def changed(base: np.ndarray, worse: int, better: int) -> np.ndarray:
    """Return what is right once so many of the right are wrong, and of the wrong right."""
    found = base.copy()
    found[np.flatnonzero(base)[:worse]] = False
    found[np.flatnonzero(~base)[:better]] = True
    return found


def test_what_is_known_of_other_tasks_decides_where_few_images_do_not():
    labels, base = LABELS[:25], right(0.6, 0)[:25]
    ways = {"head": base, "worse": changed(base, 4, 3), "ruined": changed(base, 14, 0)}
    ways = {way: 2.0 * np.eye(2)[np.where(x, labels, 1 - labels)] for way, x in ways.items()}
    assert gain(ways["worse"], ways["head"], labels).accuracy == -0.04
    assert best_of(ways, labels, priors={"worse": GENTLE, "ruined": GENTLE}) == "worse"
    assert best_of(ways, labels, priors={"worse": FREE, "ruined": FREE}) == "head"
    assert best_of(ways, labels) == "head"


@pytest.mark.parametrize(("lost", "taken"), [(4, "tuned"), (8, "head")])
def test_what_is_worse_here_beyond_chance_is_not_taken_whatever_it_gains_elsewhere(lost, taken):
    """Of 16 images so many only the head gets right: a normal prior would overrule even eight, and
    four are what chance does in one case of sixteen."""
    labels, base = LABELS[:16], np.ones(16, bool)
    base[15] = False
    worse = base.copy()
    worse[:lost] = False
    ways = {"head": base, "tuned": worse}
    ways = {way: 2.0 * np.eye(2)[np.where(x, labels, 1 - labels)] for way, x in ways.items()}
    found = gain(ways["tuned"], ways["head"], labels)
    assert found.expected(GENTLE) > 0
    assert found.is_worse == (taken == "head")
    assert best_of(ways, labels, priors={"tuned": GENTLE}) == taken


def test_many_images_decide_alone():
    labels, base = np.tile(LABELS, 50), np.tile(right(0.6, 0), 50)
    ways = [2.0 * np.eye(2)[np.where(x, labels, 1 - labels)] for x in (base, changed(base, 300, 0))]
    found = gain(ways[1], ways[0], labels)
    assert found.expected(GENTLE) == pytest.approx(found.accuracy, abs=2e-3)
    assert found.expected(GENTLE) == pytest.approx(-0.03, abs=2e-3)


def test_images_of_a_group_count_as_fewer():
    values = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    alone, together = standard_error(values), standard_error(values, np.repeat(np.arange(20), 10))
    assert together > 2.5 * alone
    share = right(0.7, 0)[:20].repeat(10)
    _, (low, high) = expected_accuracy(logits(share), LABELS)
    _, (lower, higher) = expected_accuracy(logits(share), LABELS, np.repeat(np.arange(20), 10))
    assert higher - lower > 2 * (high - low)


def test_the_expected_accuracy_of_a_cross_validation_holds_on_new_images():
    """Predictions of a fold share their training images, so they vary more than as many draws."""
    generator, held, as_draws = np.random.default_rng(0), 0, 0

    def nearest(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
        means = np.stack([x[y == k].mean(0) for k in (0, 1)])
        return -((at[:, None] - means) ** 2).sum(-1)

    for draw in range(200):
        y = np.arange(2040) % 2
        x = generator.normal(size=(2040, 20)) + 0.35 * y[:, None]
        logits, fold = np.zeros((40, 2)), folds(y[:40], 5, repeats=1, seed=draw)[0]
        for inside, outside in pairs(fold):
            logits[outside] = nearest(x[inside], y[inside], x[outside])
        truth = (nearest(x[:40], y[:40], x[40:]).argmax(1) == y[40:]).mean()
        low, high = expected_accuracy(logits, y[:40], parts=5)[1]
        held += low <= truth <= high
        low, high = expected_accuracy(logits, y[:40])[1]
        as_draws += low <= truth <= high
    assert held >= 190
    assert as_draws < 190


def test_a_choice_by_other_images_does_not_flatter_ways_that_are_chance():
    """The best of many coin tosses looks good on the images that chose it, and not on others."""
    tosses = {str(seed): logits(right(0.5, seed)) for seed in range(60)}
    fold = folds(LABELS, 5, repeats=1)[0]
    flattered = tosses[best_of(tosses, LABELS)]
    blind = chosen_blindly(tosses, LABELS, fold)
    assert (flattered.argmax(1) == LABELS).mean() > 0.55
    assert (blind.argmax(1) == LABELS).mean() < 0.56
