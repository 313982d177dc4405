"""Tasks: three of labels and the pretexts, each with its own words; none is taken for another."""

import pytest

from hf_transfer.recipe.conflicts import phase_conflicts
from hf_transfer.recipe.specs import GradualSpec, PhaseSpec
from hf_transfer.recipe.tasks import PRETEXTS, TASKS, labels_of, task_of


def test_a_task_is_known_again_by_the_problem_type_in_a_config():
    labelled = [task for task in TASKS.values() if not task.is_pretext]
    assert [task_of(task.problem_type) for task in labelled] == [task.name for task in labelled]
    assert {task_of(task.problem_type) for task in PRETEXTS.values()} == {"classification"}
    assert task_of("single_label_classification") == "classification"


def test_the_head_of_a_pretext_has_a_size_of_its_own_and_that_of_another_task_the_data_s():
    assert labels_of("classification", ("cat", "dog")) == ("cat", "dog")
    assert labels_of("rotation", ("image",)) == ("0", "1", "2", "3")
    assert all(len(labels_of(name, ("image",))) == t.outputs for name, t in PRETEXTS.items())


@pytest.mark.parametrize("name", PRETEXTS)
def test_what_is_for_labels_does_not_go_with_a_pretext(name):
    augment = "none" if PRETEXTS[name].moves else "light"
    spec = PhaseSpec("head", epochs=1, label_smoothing=0.1, mixup=0.2, augment=augment)
    assert len(list(phase_conflicts(spec, name))) == 2


@pytest.mark.parametrize("what", [{"train": "head"}, {"gradual": "1 stage"}])
def test_what_is_for_labels_does_not_go_with_numbers(what):
    kind = PhaseSpec if "train" in what else GradualSpec
    spec = kind(epochs=1, label_smoothing=0.1, mixup=0.2, cutmix=0.3, **what)
    assert len(list(phase_conflicts(spec, "regression"))) == 3
    assert list(phase_conflicts(spec, "multi_label")) == []
