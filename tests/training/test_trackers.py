"""A tracker sees one run: steps that go on over all phases, where each begins, and every rate."""

import pytest
from small import ALL, COLD, HEAD, trained, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from hf_transfer.base.errors import UserError
from hf_transfer.recipe.load import parse_recipe
from hf_transfer.training.arguments import training_arguments
from hf_transfer.training.trackers import Trackers

SOLVED = {"train": "head", "solve": "lbfgs"}


def events(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def steps(found, key):
    return [event.step for event in found.Scalars(key)]


def values(found, key):
    return [event.value for event in found.Scalars(key)]


def test_tensorboard_has_one_run_with_steps_that_go_on(tmp_path):
    phases = [HEAD, {**ALL, "epochs": 2, "layer_decay": 0.5}]
    done = trained(tmp_path, phases, report_to="tensorboard")
    (log,) = (tmp_path / "tensorboard").iterdir()
    assert str(tmp_path.parent).encode() not in log.read_bytes()  # trackers show it to others
    found = events(tmp_path / "tensorboard")
    assert steps(found, "train/loss") == [3, 6, 9, 12]
    assert steps(found, "eval/accuracy") == [3, 6, 9, 12]
    assert values(found, "train/epoch") == sorted(values(found, "train/epoch"))
    rows = zip(steps(found, "train/phase"), values(found, "train/phase"), strict=True)
    assert {step: value for step, value in rows if step in (0, 9)} == {0: 1, 9: 2}
    frozen = [phase.frozen_prefix for phase in done.phases]
    assert steps(found, "train/phase/frozen_groups") == [0, 6]
    assert values(found, "train/phase/frozen_groups") == frozen
    labels = [key for key in found.Tags()["scalars"] if key.startswith("train/learning_rate/")]
    assert len(labels) == len(done.reports[1].rates)
    told = found.Tensors("train/phase/trains/text_summary")
    words = [event.tensor_proto.string_val[0].decode() for event in told]
    assert [word.partition(":")[0] for word in words] == ["1 head", "2 all"]


def test_a_solved_head_is_logged_at_the_runs_place_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = trained(tmp_path / "run", [SOLVED, ALL], report_to="tensorboard")
    found = events(tmp_path / "run" / "tensorboard")
    solved = done.reports[0].steps
    assert steps(found, "train/loss") == [solved, solved + 3]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


class Noting(TensorBoardCallback):
    """A tracker that writes down what it is told."""

    def __init__(self):
        self.told, self.logging_dir = [], None

    def on_train_begin(self, args, state, control, **kwargs):
        self.told.append(("begin", args.output_dir))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.told.append((state.global_step, logs.get("phase")))

    def on_train_end(self, args, state, control, **kwargs):
        self.told.append(("end", state.global_step))


def test_a_run_begins_and_ends_once_also_where_it_is_resumed(tmp_path):
    note = Noting()
    trained(tmp_path, [HEAD, ALL], callbacks=[note], checkpoint_seconds=1000)
    assert note.told.count(("begin", tmp_path.name)) == 1  # the last part of the path alone
    assert note.told[-1] == ("end", 9)
    again = Noting()
    made = trainer(
        tmp_path,
        [HEAD, ALL, {**ALL, "name": "more", "lr": 1e-4}],
        callbacks=[again],
        checkpoint_seconds=1000,
    )
    made.train(resume_from_checkpoint=True)
    assert again.told[:2] == [("begin", tmp_path.name), (9, 3)]
    assert again.told[-1] == ("end", 12)


def test_a_run_that_fails_is_ended(tmp_path):
    class Fail(TrainerCallback):
        def on_epoch_end(self, *args, **kwargs):
            raise UserError("enough")

    note = Noting()
    with pytest.raises(UserError, match="enough"):
        trained(tmp_path, [COLD], callbacks=[note, Fail()])
    assert [word for word, _ in note.told if isinstance(word, str)] == ["begin", "end"]


def test_without_trackers_nothing_is_put_in_their_place(tmp_path):
    callbacks = trainer(tmp_path, [HEAD]).callback_handler.callbacks
    assert not any(isinstance(callback, Trackers) for callback in callbacks)


def test_a_recipe_names_trackers(tmp_path):
    text = "phases: [{train: head, epochs: 1}]\nreport_to: "
    for given in ("tensorboard", "[tensorboard]"):
        recipe = parse_recipe(text + given, "named.yaml")
        args = training_arguments(recipe, tmp_path)
        assert (args.report_to, args.run_name) == (["tensorboard"], "named")
    with pytest.raises(UserError, match="report_to"):
        parse_recipe(text + "tensorbord", "named.yaml")


def test_a_tracker_that_is_unknown_or_not_installed_is_told_with_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no tracker 'tensorbord'; nearest: tensorboard"):
        trainer(tmp_path, [HEAD], report_to=["tensorbord"])
    monkeypatch.setattr("hf_transfer.training.trackers.find_spec", lambda name: None)
    with pytest.raises(UserError, match="mlflow is not installed; pip install mlflow"):
        trainer(tmp_path, [HEAD], report_to=["mlflow"])
