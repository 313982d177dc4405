"""A run ends with its best phase unless told otherwise, and says which phase made it worse."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import ALL, COLD, HEAD, changed, state, trained, trainer
from transformers import TrainerCallback

from hf_transfer.base.errors import UserError
from hf_transfer.recipe.specs import PhaseSpec
from hf_transfer.results.report import PhaseReport
from hf_transfer.training.best_phase import BestPhase

RUINS = {**ALL, "name": "ruins", "lr": 0.5, "best": "last", "schedule": "constant"}


class Ends(TrainerCallback):
    """Keeps the weights that each phase ends with; its best ones are put back only afterwards."""

    def __init__(self):
        self.starts = []

    def on_train_begin(self, args, state_, control, model=None, **kwargs):
        self.starts.append(state(model))


class Scripted:
    """`compute_metrics` that says what a list says, one value an evaluation."""

    def __init__(self, *values, name="accuracy"):
        self.values, self.name = list(values), name

    def __call__(self, prediction):
        return {self.name: self.values.pop(0)}


def three(folder, values, **options):
    """Train a head and two phases, each of one epoch, with these metrics."""
    a = {**ALL, "name": "a", "train": "last 1 stage", "features": "live"}
    phases = [{**HEAD, "epochs": 1}, a, {**ALL, "name": "b"}]
    options = {"compute_metrics": Scripted(*values), "ends_with": "best", **options}
    ends = Ends()
    return trained(folder, phases, callbacks=[ends], **options), ends


def test_a_run_ends_with_the_weights_of_its_best_phase_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        done, ends = three(tmp_path, (0.5, 0.9, 0.7))
    assert changed(ends.starts[2], state(done.model)) == set()
    worse = "phase b made it worse: accuracy 0.7000, after phase a it was 0.9000"
    assert done.notes == ("the model is that of phase a, the best one (ends_with: best)",)
    for note in (worse, *done.notes):
        assert caplog.text.count(note) == 1


@pytest.mark.parametrize("values", [(0.5, 0.6, 0.7), (0.5, 0.7, 0.7)])
def test_where_the_last_phase_is_as_good_the_run_ends_with_it(tmp_path, values):
    done, ends = three(tmp_path, values)
    assert changed(ends.starts[2], state(done.model))
    assert done.notes == ()


def test_the_last_phase_can_be_asked_for_and_is_told_to_be_worse_all_the_same(tmp_path, caplog):
    done, ends = three(tmp_path, (0.5, 0.9, 0.7), ends_with="last")
    assert changed(ends.starts[2], state(done.model))
    assert done.notes == ()
    assert "phase b made it worse: accuracy 0.7000, after phase a it was 0.9000" in caplog.text


def test_what_is_predicted_afterwards_is_the_best_phases(tmp_path):
    """From its features, where it kept them: those of another phase would be another network's."""
    phases = [{"train": "head", "solve": "lbfgs"}, RUINS]
    done = trained(tmp_path, phases, ends_with="best")
    assert done.reports[0].metrics["accuracy"] > done.reports[1].metrics["accuracy"]
    logits = torch.from_numpy(done.predict_validation().predictions)
    plain = torch.from_numpy(done.predict(done.eval_dataset).predictions)
    assert torch.allclose(logits, plain, atol=1e-4)
    right = (logits.argmax(1).numpy() == done.eval_dataset.labels).mean()
    assert right == pytest.approx(done.reports[0].metrics["accuracy"])


@pytest.mark.parametrize(("lost", "ends"), [(1, 1), (5, 0)])
def test_a_phase_gives_way_to_a_solved_head_only_for_a_loss_above_its_standard_error(lost, ends):
    """Of twelve images, one more wrong is a loss of 8.3 points with an error of 8.3; five more
    are 41.7 with 14.9."""
    labels = np.zeros(12, int)
    logits = {i: np.tile([1.0, 0.0], (12, 1)) for i in range(2)}
    logits[1][:lost] = [0.0, 1.0]
    specs = PhaseSpec("head", solve="lbfgs"), PhaseSpec("all", epochs=1)
    phases = [SimpleNamespace(spec=spec) for spec in specs]
    reports = [
        PhaseReport(name, (), 1, 1, 1, 1, 1, metrics={"accuracy": right / 12})
        for name, right in (("head", 12), ("all", 12 - lost))
    ]
    model = torch.nn.Linear(1, 1)
    best = BestPhase(phases, "classification", True)
    for i in range(2):
        torch.nn.init.constant_(model.weight, float(i))
        best.after(model, reports[: i + 1])
    best.bring_back(model, reports, lambda i: (logits[int(model.weight.item())], labels))
    assert (best.index, model.weight.item()) == (ends, ends)
    by_chance = (
        "phase head was better by no more than chance explains (8.3 ± 8.3 points): the model is "
        "that of phase all (ends_with: best)"
    )
    told = "the model is that of phase head, the best one (ends_with: best)"
    assert best.notes(reports) == (by_chance if ends else told,)


@pytest.mark.parametrize("after", [(), (10,)])
def test_a_phase_that_was_undone_is_none_to_end_with(after):
    """After a solved head every later phase may be the end, but not one that was taken back."""
    rights = 12, 11, *after
    specs = PhaseSpec("head", solve="lbfgs"), PhaseSpec("all", epochs=1, pseudo={"per_image": 1})
    phases = [SimpleNamespace(spec=spec) for spec in (*specs, *specs[:1])[: len(rights)]]
    reports = [
        PhaseReport(f"{i}", (), 1, 1, 1, 1, 1, metrics={"accuracy": rights[i] / 12})
        for i in range(len(rights))
    ]
    model = torch.nn.Linear(1, 1)
    best = BestPhase(phases, "classification", True)
    for i in range(len(rights)):
        torch.nn.init.constant_(model.weight, float(i))
        best.after(model, reports[: i + 1])
        assert model.weight.item() == (0 if i == 1 else i)
    labels = np.zeros(12, int)
    asked = []

    def predict(i):
        asked.append(i)
        logits = np.tile([1.0, 0.0], (12, 1))
        logits[rights[i] :] = [0.0, 1.0]
        return logits, labels

    best.bring_back(model, reports, predict)
    assert 1 not in (*asked, best.index)
    assert model.weight.item() == best.index
    assert best.notes(reports)[0].startswith("phase 1 is undone: accuracy 0.9167")


def test_a_run_that_is_resumed_ends_with_the_same_phase(tmp_path):
    options = {"checkpoint_seconds": 1000, "ends_with": "best"}
    first = trained(tmp_path, [HEAD, RUINS], **options)
    again = trainer(tmp_path, [HEAD, RUINS], **options)
    again.train(resume_from_checkpoint=True)
    assert changed(state(first.model), state(again.model)) == set()
    assert again.notes == first.notes


def test_phases_are_compared_by_the_metric_that_the_last_one_names(tmp_path, caplog):
    phases = [{**HEAD, "epochs": 1}, {**ALL, "best": "score"}]
    scripted = Scripted(0.9, 0.1, name="score")
    trained(tmp_path, phases, compute_metrics=scripted, ends_with="best")
    assert "score 0.1000, after phase head it was 0.9000" in caplog.text


def test_without_validation_images_the_run_ends_with_its_last_phase(tmp_path):
    done = trained(tmp_path, [HEAD, ALL], eval_dataset=None, ends_with="best")
    assert done.notes == ()


def test_any_other_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="ends_with must be best or last, got 'first'"):
        trainer(tmp_path, [HEAD], ends_with="first")


def test_a_loss_that_jumps_at_a_phases_start_is_told_with_what_to_do(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        done = trained(tmp_path, [{**COLD, "epochs": 1}, RUINS])
    [told] = [note for note in done.notes if "loss starts at" in note]
    assert told.startswith("phase ruins: the loss starts at ")
    assert "lower its rates (lr: 0.05), or add warmup: 0.1 and still_norms: true" in told
    assert caplog.text.count(told) == 1


def test_a_loss_that_rises_a_little_is_not_told(tmp_path):
    assert trained(tmp_path, [HEAD, {**ALL, "lr": 1e-4}], ends_with="last").notes == ()


def test_a_phase_after_a_solved_head_starts_gently_and_a_jump_is_told_all_the_same(tmp_path):
    solved = {"train": "head", "solve": "lbfgs"}
    done = trained(tmp_path, [solved, {**RUINS, "lr": 5.0, "schedule": "cosine"}])
    assert done.reports[1].gentle == (
        "its rates rise during the first 10% of its steps",
        "it keeps the statistics of BatchNorm layers",
    )
    [told] = [note for note in done.notes if "loss starts at" in note]
    assert told.endswith("lower its rates (lr: 0.5)")
