"""The plan that one clicks together is the plan that runs."""

from pathlib import Path

import pytest
from drawn import picture

from hf_transfer.planning.recorded import recorded_layout
from hf_transfer.recipe.load import parse_recipe
from hf_transfer.space.draft import STARTS, Draft, new_draft
from hf_transfer.space.drawn_plan import plan_view
from hf_transfer.space.limits import Limits, Refused

NETWORK = "timm/resnet18"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for label in ("cat", "dog"):
        (root / label).mkdir()
        for i in range(6):
            picture(i).save(root / label / f"{i}.png")
    return root


@pytest.fixture
def draft(data) -> Draft:
    assert recorded_layout(NETWORK, 2) is not None
    return new_draft(data, NETWORK, "lp_ft", 64, Limits())


def toggle(draft: Draft, phase: int, stage: str) -> None:
    draft.change({"act": "toggle", "phase": str(phase), "stage": stage})


@pytest.mark.parametrize("start", STARTS)
def test_every_start_gives_a_plan_that_can_be_read_back(start, data):
    draft = new_draft(data, NETWORK, start, 64, Limits())
    assert draft.problem == ""
    again = parse_recipe(draft.text(), "again.yaml")
    assert again.phases == draft.recipe.phases


def test_a_click_freezes_and_unfreezes_a_stage(draft):
    last = len(draft.plan.phases) - 1
    assert set(draft.trained(last).values()) == {1.0}
    toggle(draft, last, "stem")
    assert draft.trained(last)["stem"] == 0.0
    assert draft.recipe.phases[last].train == "from layer1"
    toggle(draft, last, "layer2")
    assert draft.recipe.phases[last].train == ("layer1", "layer3", "layer4", "head")
    toggle(draft, last, "stem")
    toggle(draft, last, "layer2")
    assert draft.recipe.phases[last].train == "all"


def test_a_solved_head_becomes_steps_as_soon_as_more_trains(data):
    draft = new_draft(data, NETWORK, "exact_head", 64, Limits())
    toggle(draft, 0, "layer4")
    (phase,) = draft.recipe.phases
    assert (phase.solve, phase.epochs, phase.cold_head) == (None, 5, True)
    assert draft.problem == ""


def test_the_cost_changes_with_what_trains(draft):
    last = len(draft.plan.phases) - 1
    before = draft.plan.phases[last].parameters
    for stage in ("stem", "layer1", "layer2", "layer3"):
        toggle(draft, last, stage)
    assert draft.plan.phases[last].parameters < before
    assert draft.plan.phases[last].live is not None  # its images are varied
    draft.change({"act": "augment", "phase": str(last), "value": "none"})
    assert draft.plan.phases[last].live is None


def test_rates_and_epochs_are_as_they_are_entered(draft):
    last = str(len(draft.plan.phases) - 1)
    draft.change({"act": "rate", "phase": last, "value": "3e-4"})
    draft.change({"act": "epochs", "phase": last, "value": "7"})
    assert draft.recipe.phases[-1].lr == 3e-4
    assert draft.recipe.phases[-1].epochs == 7
    assert draft.problem == ""


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"act": "rate", "value": "fast"}, "A rate must be from 1e-07 to 1 here, got 'fast'"),
        ({"act": "rate", "value": "1e9"}, "A rate must be from"),
        ({"act": "epochs", "value": "1000"}, "epochs must be from 1 to 50"),
        ({"act": "augment", "value": "${x}"}, "one of none, light, standard"),
        ({"act": "toggle", "phase": "99", "stage": "head"}, "no longer there"),
        ({"act": "toggle", "phase": "-1", "stage": "head"}, "no longer there"),
        ({"act": "exec", "value": "1"}, "does not know that change"),
    ],
)
def test_what_cannot_be_is_told_and_changes_nothing(asked, why, draft):
    before = draft.recipe
    last = str(len(draft.plan.phases) - 1)
    draft.change({"phase": last, **asked})
    assert why in draft.problem
    assert draft.recipe == before
    assert draft.plan is not None
    assert 'role="alert"' in plan_view(draft)


def test_a_phase_must_train_something(draft):
    for stage in draft.stages:
        toggle(draft, 0, stage) if draft.trained(0)[stage] else None
    assert "must train something" in draft.problem
    assert draft.plan is not None


def test_phases_are_added_and_removed_within_the_limit(draft):
    count = len(draft.plan.phases)
    for _ in range(Limits().phases - count):
        draft.change({"act": "add"})
    assert len(draft.plan.phases) == Limits().phases
    draft.change({"act": "add"})
    assert "up to 3 phases" in draft.problem
    for _ in range(3):
        draft.change({"act": "remove", "phase": "0"})
    assert "at least one phase" in draft.problem
    assert len(draft.plan.phases) == 1


def test_a_plan_beyond_the_budget_is_shown_and_not_trained(data):
    draft = new_draft(data, NETWORK, "lp_ft", 224, Limits(planned_seconds=0.1))
    assert draft.plan is not None
    assert "the page trains up to" in draft.refusal
    assert draft.refusal in plan_view(draft)


@pytest.mark.parametrize(("start", "px"), [("nothing", 64), ("lp_ft", 4), ("lp_ft", 4096)])
def test_a_start_or_a_size_that_is_not_offered_is_refused(start, px, data):
    with pytest.raises(Refused):
        new_draft(data, NETWORK, start, px, Limits())


def test_a_plan_is_not_trained_once_something_else_is_chosen(draft):
    draft.chosen = ("timm/a", None, 64)
    draft.check_chosen(("timm/a", "lp_ft", 64))
    for now in (("timm/b", "lp_ft", 64), ("timm/a", "lp_ft", 32)):
        with pytest.raises(Refused, match="Make the plan again"):
            draft.check_chosen(now)


def test_every_stage_is_a_button_that_tells_its_state(draft):
    view = plan_view(draft)
    for stage in draft.stages:
        assert f'aria-label="{stage}, phase 1: ' in view
    assert view.count('aria-pressed="true"') + view.count('aria-pressed="false"') == len(
        draft.stages
    ) * len(draft.plan.phases)
