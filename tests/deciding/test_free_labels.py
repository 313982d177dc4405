"""Whether images without labels are worth it: by their number, the labels and the domain."""

import pytest
from drawn import photos

from hf_transfer.base.errors import DataError
from hf_transfer.deciding import free_labels
from hf_transfer.deciding.free_labels import images_in, on_unlabelled
from hf_transfer.recipe.tasks import REGRESSION

FEW = 45, 20  # labelled images, and those of the smallest class


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(free_labels, "LEAST", 20)
    monkeypatch.setattr(free_labels, "TIMES", 1)
    return photos(tmp_path / "mine", count=24)


def test_without_a_folder_there_is_nothing_to_say():
    assert on_unlabelled(None, images_in(None), *FEW, "far") == ()


def test_it_may_be_worth_it_with_few_labels_in_a_domain_of_its_own(folder):
    for nearness in ("far", "shifted"):
        (said,) = on_unlabelled(folder, images_in(folder), *FEW, nearness)
        assert "the 48 images in" in said
        assert str(folder.parent.parent) not in said  # which is on the page
        assert "may be worth learning from first" in said


@pytest.mark.parametrize(
    ("labelled", "nearness", "words"),
    [
        (FEW, "near", "near those that the backbone was trained on"),
        ((300, 100), "far", "too few beside 300 labelled ones"),
        ((50, 24), "far", "too few beside 50 labelled ones"),
    ],
)
def test_it_says_why_it_is_not_worth_it(folder, labelled, nearness, words):
    (said,) = on_unlabelled(folder, images_in(folder), *labelled, nearness)
    assert words in said
    assert "may be worth learning" not in said


@pytest.mark.parametrize(
    ("images", "labelled", "nearness", "worth"),
    [
        (152, (45, 15), "far", True),  # radiographs, ResNet-10-T: 0.603 to 0.676
        (152, (90, 30), "far", False),  # 0.771 to 0.775
        (3000, (150, 30), "far", True),  # flowers, ResNet-10-T: 0.576 to 0.617
        (3000, (150, 30), "near", False),  # EfficientNet-Lite0: 0.603 to 0.596
    ],
)
def test_the_rule_says_what_was_measured(images, labelled, nearness, worth):
    (said,) = on_unlabelled("mine", images, *labelled, nearness)
    assert ("may be worth learning" in said) is worth


def test_many_labels_say_what_other_images_would(folder, monkeypatch):
    monkeypatch.setattr(free_labels, "ENOUGH", 20)
    (said,) = on_unlabelled(folder, images_in(folder), *FEW, "far")
    assert "labels for 20 images of each class or more, as here" in said
    (said,) = on_unlabelled(folder, images_in(folder), *FEW, "far", REGRESSION)
    assert "labels for 40 images or more, as here" in said


def test_a_folder_without_images_is_told(tmp_path):
    with pytest.raises(DataError, match="no images"):
        images_in(tmp_path)
