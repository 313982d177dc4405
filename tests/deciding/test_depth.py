"""The depth to train follows from the probes, their errors, and how many images there are."""

import numpy as np
import pytest
from small import RESNET, VIT, images, network

from hf_transfer.deciding.boundaries import boundary_features
from hf_transfer.deciding.depth import FEW, Depth, candidates, choose, depths_of
from hf_transfer.deciding.folds import folds
from hf_transfer.deciding.probes import targets_of
from hf_transfer.planning.selection import select
from hf_transfer.recipe.tasks import REGRESSION


def depth(stages, value, gain=0.0, error=0.02):
    train = ("head",) if not stages else (f"last {stages} stages", "head")
    return Depth(stages, train, "x", value, (value - 0.1, value + 0.1), (gain, error))


def row(*gains, error=0.02, head=0.6):
    return [depth(0, head), *(depth(i + 1, head + g, g, error) for i, g in enumerate(gains))]


@pytest.mark.parametrize("name", [RESNET, VIT])
def test_candidates_go_from_the_head_to_everything_and_select_what_they_say(name):
    groups = network(name).backbone.groups
    found = candidates(groups)
    assert found[0][1] == ("head",)
    assert found[-1][1] == ("all",)
    sizes = [len(select(train, groups)) for _, train, _ in found]
    assert sizes == sorted(set(sizes))
    for _, train, first in found[1:]:
        assert groups.of(select(train, groups)[0]).name == first


def test_depths_are_probed_on_the_features_of_what_trains():
    model, some = network(RESNET), images(60)
    found = boundary_features(model, some, keep=False)
    targets = targets_of(some.labels, 3)
    depths = depths_of(
        model.backbone.groups, found, some.labels, targets, folds(some.labels, repeats=1)
    )
    assert [d.stages for d in depths] == [n for n, _, _ in candidates(model.backbone.groups)]
    assert depths[0].gain == (0.0, 0.0)
    assert all(low <= d.value <= high for d in depths for low, high in [d.interval])


def test_too_few_images_of_a_class_choose_nothing():
    found = choose(row(0.3, 0.3), FEW - 1)
    assert found.depth.stages == 0
    assert "too few images to choose by: it takes 10 images of each class" in found.why
    assert "it takes 20 images" in choose(row(0.3, 0.3), FEW - 1, task=REGRESSION).why


def test_a_head_without_mistakes_stays_alone():
    assert choose(row(0.005, head=0.995), 100).depth.stages == 0


def test_a_clear_gain_unfreezes_as_deep_as_is_even_with_the_best():
    found = choose(row(0.08, 0.10, 0.095, 0.02), 20)
    assert found.depth.stages == 3
    assert found.sure == "sure"


def test_a_doubtful_gain_unfreezes_as_little_as_is_even_with_the_best():
    found = choose(row(0.02, 0.03, 0.025), 20)
    assert found.depth.stages == 1
    assert found.sure == "fairly sure"


def test_many_images_unfreeze_more_also_without_a_gain_of_probes():
    assert choose(row(0.0, 0.0, -0.01, -0.02), 30).depth.stages == 1
    assert choose(row(0.0, 0.0, -0.01, -0.02), 200).depth.stages > 1


def test_without_a_gain_of_probes_it_is_the_last_stage_and_open():
    found = choose(row(0.01, 0.0, -0.01), 20)
    assert (found.depth.stages, found.sure) == (1, "open")


def test_without_a_gain_of_probes_only_classes_train_more_than_the_head():
    for gains in ((0.0, -0.01), (0.01, 0.0)):
        for early in (False, True):
            found = choose(row(*gains), 200, early, REGRESSION)
            assert (found.depth.stages, found.sure) == (0, "open")
    assert choose(row(0.1, 0.1), 200, task=REGRESSION).depth.stages == 2


def test_images_that_differ_from_the_first_layers_on_unfreeze_everything():
    found = choose(row(0.0, 0.0, 0.0), 20, early=True)
    assert found.depth.stages == 3
    assert "first layers" in found.why


def test_what_trains_is_said_in_words():
    assert depth(0, 0.5).words == "the head alone"
    assert depth(1, 0.5).words == "the last stage and the head"
    assert np.isclose(depth(2, 0.5).value, 0.5)
    assert depth(2, 0.5).words == "the last 2 stages and the head"
