import numpy as np
import pytest
from drawn import photos

from hf_transfer.base.errors import UserError
from hf_transfer.data.sources import scan
from hf_transfer.deciding.folds import folds, groups_of, pairs
from hf_transfer.recipe.specs import DataSpec


def test_every_image_is_in_one_fold_of_each_repeat_and_every_class_in_each_fold():
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    found = folds(labels, 5, repeats=3)
    assert found.shape == (3, 60)
    for fold in found:
        for label, size in ((0, 2), (1, 4), (2, 6)):
            assert np.bincount(fold[labels == label]).tolist() == [size] * 5
    assert (found[0] != found[1]).any()


def test_folds_of_few_images_a_class_are_as_large_as_each_other():
    fold = folds(np.repeat(np.arange(10), 3), 5, repeats=1)[0]
    assert np.bincount(fold).tolist() == [6] * 5


@pytest.mark.parametrize("kind", ["classes", "labels", "numbers"])
def test_images_of_a_group_stay_together(kind):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), rng.integers(1, 5, 30))
    labels = {
        "classes": groups % 3,
        "labels": rng.integers(0, 2, (len(groups), 4)),
        "numbers": rng.normal(size=(len(groups), 1)),
    }[kind]
    for fold in folds(labels, 4, groups=groups):
        assert all(len(set(fold[groups == group])) == 1 for group in range(30))
        assert set(fold) == {0, 1, 2, 3}
        if kind == "classes":
            assert all(len(set(fold[labels == label])) == 4 for label in range(3))


def test_the_same_seed_gives_the_same_folds():
    labels = np.arange(40) % 4
    assert (folds(labels, seed=3) == folds(labels, seed=3)).all()
    assert (folds(labels, seed=3) != folds(labels, seed=4)).any()


def test_there_are_no_more_folds_than_groups_and_at_least_two():
    labels = np.array([0, 0, 1, 1, 0, 1])
    assert set(folds(labels, 5, groups=np.array([7, 7, 7, 9, 9, 9]))[0]) == {0, 1}
    with pytest.raises(UserError, match="there is one group"):
        folds(labels, 5, groups=np.zeros(6, int))


def test_pairs_fit_on_all_that_they_do_not_predict():
    fold = folds(np.arange(12) % 2, 3, repeats=1)[0]
    seen = []
    for inside, outside in pairs(fold):
        assert sorted([*inside, *outside]) == list(range(12))
        seen += outside.tolist()
    assert sorted(seen) == list(range(12))


def test_groups_are_those_of_the_files_names(tmp_path):
    photos(tmp_path, ("a", "b"), 3)
    spec = DataSpec(path=str(tmp_path), validation=0.0, group=r"(\d)\.png$")
    found = scan(spec)
    groups = groups_of(found, found.files)
    assert len(set(groups)) == 3
    assert (groups[:3] == groups[3:]).all()
    assert groups_of(scan(DataSpec(path=str(tmp_path), validation=0.0)), found.files) is None
