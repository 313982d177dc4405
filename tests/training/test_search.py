"""A search over settings of phases: each trial is a run of its own, the best is told."""

import pytest
from small import ALL, HEAD, arguments, images, network

from hf_transfer.base.errors import UserError
from hf_transfer.training.search import changed, leading
from hf_transfer.training.trainer import TransferTrainer

DATA = {"train_dataset": images(), "eval_dataset": images(6, seed=1)}


def searcher(folder, phases, **options):
    own = {"model_init": network, **DATA, **options}
    return TransferTrainer(None, arguments(folder), phases, **own)


def test_rates_are_searched_by_default_each_trial_in_its_own_folder(tmp_path):
    made = searcher(tmp_path, [HEAD, {**ALL, "lr": 1e-3}], checkpoint_seconds=1000)
    best = made.hyperparameter_search(n_trials=2)
    assert set(best.hyperparameters) == {"phases.0.lr", "phases.1.lr"}
    assert 1e-3 <= best.hyperparameters["phases.0.lr"] <= 1e-1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trial-0", "trial-1"]
    assert (tmp_path / "trial-1" / "phase-2-all" / "checkpoint-end").is_dir()
    values = [trial.value for trial in best.run_summary.trials]
    assert best.objective == max(values)


def test_epochs_and_whole_phases_can_be_searched(tmp_path):
    def space(trial):
        return {"phases.0.epochs": trial.suggest_int("epochs", 3, 3)}

    seen = []

    def loss(metrics):
        seen.append(metrics)
        return metrics["loss"]

    best = searcher(tmp_path, HEAD).hyperparameter_search(space, loss, n_trials=1)
    assert best.hyperparameters == {"epochs": 3}
    assert best.objective == seen[0]["loss"]

    def recipes(trial):
        name = trial.suggest_categorical("recipe", ["exact_head"])
        return {"phases": [{"train": "head", "solve": "lbfgs"}] if name == "exact_head" else [HEAD]}

    found = searcher(tmp_path / "b", HEAD).hyperparameter_search(recipes, n_trials=1)
    assert found.hyperparameters == {"recipe": "exact_head"}


def test_what_is_missing_for_a_search_is_told(tmp_path, monkeypatch):
    plain = TransferTrainer(network(), arguments(tmp_path), [HEAD], **DATA)
    with pytest.raises(UserError, match="pass model_init, a function that returns one"):
        plain.hyperparameter_search()
    with pytest.raises(UserError, match="compares on validation images; pass eval_dataset"):
        searcher(tmp_path, [HEAD], eval_dataset=None).hyperparameter_search()
    with pytest.raises(UserError, match="runs with optuna, not ray"):
        searcher(tmp_path, [HEAD]).hyperparameter_search(backend="ray")


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("lr", "hp_space gives 'lr'; write phases.0.lr"),
        ("phases.4.lr", "write phases.0.lr, phases.0.epochs and so on"),
        ("phases.0.lrr", "a phase has no 'lrr'; nearest: lr"),
    ],
)
def test_a_setting_that_is_none_is_told(tmp_path, key, says):
    specs = [phase.spec for phase in searcher(tmp_path, [HEAD]).phases]
    with pytest.raises(UserError, match=says):
        changed(specs, {key: 1.0})


def test_runs_are_compared_by_what_the_task_leads_with_else_by_the_loss():
    assert leading({"loss": 2.0, "accuracy": 0.5}, "classification") == 0.5
    assert leading({"loss": 2.0}, "classification") == -2.0
