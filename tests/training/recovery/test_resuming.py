"""A run that was interrupted, anywhere, ends with every bit of the unbroken one."""

import json
import os
import random
import signal
import time

import pytest
import torch
from children import ended, start, train
from small import COLD, HEAD, RESNET, changed, images, network, state, trained, trainer
from transformers.trainer_utils import get_last_checkpoint

from hf_transfer.training.recovery import checkpoints
from hf_transfer.training.recovery.checkpoints import CheckpointError
from hf_transfer.training.recovery.resuming import difference

MIXED = {"augment": "light", "mixup": 0.3, "label_smoothing": 0.1, "batch_size": 6}
PHASES = [
    {**HEAD, "epochs": 2},
    {**COLD, **MIXED, "train": "last 2 blocks", "epochs": 2, "stop": "rises"},
    {**COLD, **MIXED, "epochs": 2, "accumulate": 2, "best": "accuracy", "l2_sp": 0.1},
]
SAVING = "hf_transfer.training.recovery.checkpoints"
# Where a process is killed: (function, n-th call of it in that process).
MOMENTS = [
    (
        "hf_transfer.training.cached_features:CachedFeatures.during",
        1,
    ),  # before anything is computed
    ("transformers:Trainer.training_step", 2),  # in the first epoch of a phase
    (f"{SAVING}:save_tensors", 2),  # while weights are written
    (f"{SAVING}:to_disk", 12),  # while a checkpoint is sealed
    ("transformers:Trainer.prediction_step", 2),  # within an evaluation
    (f"{SAVING}:write_phase", 1),  # between the last step and the end's checkpoint
    ("hf_transfer.training.recovery.checkpoints:drop", 4),
    ("transformers:Trainer.training_step", 9),  # in the middle of an epoch
    ("hf_transfer.training.phase_run:PhaseRunner.apply", 2),  # between two phases
    ("transformers:Trainer._save_rng_state", 2),
    ("hf_transfer.training.proof:prove", 2),  # after a phase, before it is written
    ("transformers:Trainer.training_step", 4),
]


def results(out):
    return torch.load(out / "end.pt"), json.loads((out / "end.json").read_text())


def assert_same(out, other):
    (one, facts), (two, others) = results(out), results(other)
    assert changed(one, two) == set()
    assert facts == others


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The end of the same training, never interrupted and never saved, without workers."""
    out = tmp_path_factory.mktemp("unbroken")
    assert ended(start(train, out / "log", out, PHASES, {"save_strategy": "no"})) == 0, (
        out / "log"
    ).read_text()
    assert results(out)[1]["features"][0] == "cached"
    return out


def killed_and_resumed(out, moments, options):
    """Train with one kill after the other; return in how many of them it came to that."""
    kills = 0
    for moment in moments:
        child = start(train, out / "log", out, PHASES, {**options, "kill": moment})
        status = ended(child)
        assert status in (0, -signal.SIGKILL), (out / "log").read_text()
        kills += status != 0
        if status == 0:
            return kills
    status = ended(start(train, out / "log", out, PHASES, options))
    assert status == 0, (out / "log").read_text()
    return kills


def test_a_run_killed_again_and_again_ends_like_the_unbroken_one(tmp_path, unbroken):
    """At each step there is a checkpoint: it goes on in the middle of epochs, too."""
    out = tmp_path / "out"
    out.mkdir()
    assert killed_and_resumed(out, MOMENTS, {"checkpoint_seconds": 0}) >= 6
    assert_same(out, unbroken)
    assert sorted(path.name for path in out.glob("phase-1-head/*")) == ["checkpoint-end"]


def test_features_that_are_killed_while_they_are_written_are_taken_up_where_they_were(
    tmp_path, unbroken
):
    """What was whole is read, what was not is computed: each file was written once."""
    out, cache = tmp_path / "out", tmp_path / "cache"
    out.mkdir()
    options = {"checkpoint_seconds": 0, "cache": str(cache)}
    written = {}
    store = "hf_transfer.base.shards"
    for kill in ((f"{store}:_Part.add", 3), (f"{store}:os.fsync", 2), (f"{store}:os.replace", 3)):
        child = start(train, out / "log", out, PHASES, {**options, "kill": kill})
        assert ended(child) == -signal.SIGKILL, (out / "log").read_text()
        found = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
        assert found.items() > written.items()
        assert len(list(cache.rglob("*.part"))) > 0
        written = found
    assert ended(start(train, out / "log", out, PHASES, options)) == 0, (out / "log").read_text()
    found = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    assert found.items() > written.items()
    assert "is built again" not in (out / "log").read_text()
    assert_same(out, unbroken)


@pytest.mark.slow
def test_a_run_with_workers_killed_at_random_times_ends_like_the_unbroken_one(tmp_path, unbroken):
    out, moments = tmp_path / "out", random.Random(0)
    out.mkdir()
    options = {"checkpoint_seconds": 0, "dataloader_num_workers": 2}
    for _ in range(4):
        (out / "begun").unlink(missing_ok=True)
        child = start(train, out / "log", out, PHASES, options)
        while not (out / "begun").exists() and child.exitcode is None:
            time.sleep(0.01)
        child.join(moments.uniform(0, 4))
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
        assert ended(child) in (0, -signal.SIGKILL), (out / "log").read_text()
    assert ended(start(train, out / "log", out, PHASES, options)) == 0
    assert_same(out, unbroken)


def test_sigterm_saves_within_seconds_says_so_and_the_run_goes_on_from_there(tmp_path, unbroken):
    out = tmp_path / "out"
    out.mkdir()
    options = {"checkpoint_seconds": 1000, "slow": 0.3}
    child = start(train, out / "log", out, PHASES, options)
    while not (out / "stepped").exists():
        time.sleep(0.05)
        assert child.exitcode is None, (out / "log").read_text()
    time.sleep(0.2)
    called = time.monotonic()
    os.kill(child.pid, signal.SIGTERM)
    assert ended(child) == 143, (out / "log").read_text()
    assert time.monotonic() - called < 60  # nothing waits for the end; a busy machine is slow
    text = (out / "log").read_text()
    assert "stopped by SIGTERM in phase head; saved checkpoint-" in text
    assert "Traceback" not in text
    assert len(list(out.glob("phase-1-head/checkpoint-*"))) == 1
    assert ended(start(train, out / "log", out, PHASES, {"checkpoint_seconds": 1000})) == 0
    assert_same(out, unbroken)


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path, unbroken):
    out = tmp_path / "out"
    out.mkdir()
    kill = ("transformers:Trainer.training_step", 12)
    options = {"checkpoint_seconds": 0, "kill": kill}
    assert ended(start(train, out / "log", out, PHASES, options)) == -signal.SIGKILL
    found = sorted(out.glob("phase-2-*/checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert len(found) == 2
    weights = found[1] / "optimizer.pt"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert ended(start(train, out / "log", out, PHASES, {"checkpoint_seconds": 0})) == 0
    log = (out / "log").read_text()
    assert f"{found[1].name} is not used: it is torn (optimizer.pt has" in log
    assert f"going on from {found[0]}" in log
    assert_same(out, unbroken)


def test_a_torn_end_of_a_phase_is_trained_again(tmp_path):
    phases = [HEAD, COLD]
    whole = trained(tmp_path, phases, checkpoint_seconds=0)
    end = tmp_path / "phase-2-all" / checkpoints.END / checkpoints.WEIGHTS
    end.write_bytes(end.read_bytes()[:-1])
    again = trainer(tmp_path, phases, checkpoint_seconds=0)
    again.train(resume_from_checkpoint=True)
    assert changed(state(whole.model), state(again.model)) == set()


def test_a_finished_run_trains_nothing_more_and_has_the_same_reports(tmp_path):
    whole = trained(tmp_path, [HEAD, COLD], checkpoint_seconds=0)
    again = trainer(tmp_path, [HEAD, COLD], checkpoint_seconds=0)
    assert again.train(resume_from_checkpoint=True).global_step == 0
    assert again.reports == whole.reports
    assert again.state.global_step == whole.state.global_step
    assert changed(state(whole.model), state(again.model)) == set()


def test_resuming_needs_no_path_and_a_run_that_begins_anew_beside_checkpoints_says_so(
    tmp_path, caplog
):
    """A Trainer script asks transformers for the last checkpoint, which looks for no phases."""
    phases, options = [HEAD, COLD], {"save_strategy": "epoch"}
    begun = trainer(tmp_path, phases, **options).train(resume_from_checkpoint=True)
    assert begun.global_step > 0  # there was nothing yet
    assert caplog.text == ""
    assert get_last_checkpoint(str(tmp_path)) is None
    trainer(tmp_path, phases, **options).train(resume_from_checkpoint=None)
    assert caplog.messages == [
        f"{tmp_path} holds checkpoints of an earlier run, and this run starts over; to continue "
        "the earlier one, write train(resume_from_checkpoint=True)"
    ]


def test_a_users_own_checkpoints_are_kept_and_resumed_from(tmp_path):
    phase = {**COLD, "epochs": 3, "best": "last"}
    options = {"save_strategy": "epoch"}
    whole = trained(tmp_path / "a", [phase], **options)
    names = sorted(path.name for path in (tmp_path / "a" / "phase-1-all").iterdir())
    assert names == ["checkpoint-3", "checkpoint-6", "checkpoint-end"]
    (tmp_path / "a" / "phase-1-all" / checkpoints.END / "manifest.json").write_text("{}")
    again = trainer(tmp_path / "a", [phase], **options)
    again.train(resume_from_checkpoint=True)
    assert changed(state(whole.model), state(again.model)) == set()
    limited = trained(tmp_path / "b", [phase], save_total_limit=1, **options)
    names = sorted(path.name for path in (tmp_path / "b" / "phase-1-all").iterdir())
    assert names == ["checkpoint-6", "checkpoint-end"]
    assert changed(state(whole.model), state(limited.model)) == set()


def test_checkpoints_at_steps_that_end_epochs_come_after_the_evaluation(tmp_path):
    phase = {**COLD, "epochs": 3}
    trained(tmp_path, [phase], save_strategy="steps", save_steps=3)
    log = json.loads((tmp_path / "phase-1-all/checkpoint-3/trainer_state.json").read_text())
    assert any("eval_loss" in row for row in log["log_history"])


def test_training_anew_in_the_same_folder_does_not_take_up_the_old_run(tmp_path):
    trained(tmp_path, [{**COLD, "epochs": 3}], checkpoint_seconds=0)
    again = trained(tmp_path, [{**COLD, "epochs": 3}], checkpoint_seconds=0, seed=8)
    whole = trained(tmp_path / "b", [{**COLD, "epochs": 3}], seed=8)
    assert changed(state(whole.model), state(again.model)) == set()


@pytest.mark.parametrize(
    ("phase", "options", "says"),
    [
        ({"lr": 0.5}, {}, "phase.spec.lr was 0.01, is 0.5"),
        ({"epochs": 9}, {}, "phase.spec.epochs was 2.0, is 9.0"),
        ({}, {"train_dataset": images(30)}, "images was 24, is 30"),
        ({}, {"model": "other"}, "other weights of the backbone"),
    ],
)
def test_another_run_is_refused_with_what_differs(tmp_path, phase, options, says):
    trained(tmp_path, [HEAD], checkpoint_seconds=0)
    if "model" in options:
        options = {"model": network(RESNET)}
        with torch.no_grad():
            options["model"].timm_model.conv1[0].weight[0, 0, 0, 0] += 1
    # A name keeps the folder the same whatever the settings.
    again = trainer(tmp_path, [{**HEAD, **phase}], checkpoint_seconds=0, **options)
    with pytest.raises(CheckpointError, match=f"of another run \\({says}") as error:
        again.train(resume_from_checkpoint=True)
    assert "\n" not in str(error.value)


def test_another_head_may_be_resumed_into(tmp_path):
    """A script draws the head's first values anew; the checkpoint has those that count."""
    whole = trained(tmp_path, [HEAD, COLD], checkpoint_seconds=0)
    model = network(RESNET)
    torch.nn.init.normal_(model.timm_model.fc.weight)
    again = trainer(tmp_path, [HEAD, COLD], model, checkpoint_seconds=0)
    again.train(resume_from_checkpoint=True)
    assert changed(state(whole.model), state(again.model)) == set()


def test_a_phase_whose_start_has_changed_is_trained_again(tmp_path, caplog):
    trained(tmp_path, [HEAD, COLD], checkpoint_seconds=0)
    checkpoints.drop(tmp_path / "phase-1-head", end=True)
    model = network(RESNET)
    torch.nn.init.normal_(model.timm_model.fc.weight)
    again = trainer(tmp_path, [HEAD, COLD], model, checkpoint_seconds=0)
    assert again.train(resume_from_checkpoint=True).global_step == 3
    assert "is not used: the phase before it has changed" in caplog.text


def test_a_checkpoint_of_more_processes_is_refused_within_a_phase(tmp_path):
    trained(tmp_path, [{**COLD, "epochs": 3}], save_strategy="epoch")
    folder = tmp_path / "phase-1-all"
    (folder / checkpoints.END / "manifest.json").unlink()
    manifest = folder / "checkpoint-6" / "manifest.json"
    about = json.loads(manifest.read_text())
    about["about"]["processes"] = 4
    manifest.write_text(json.dumps(about))
    again = trainer(tmp_path, [{**COLD, "epochs": 3}], save_strategy="epoch")
    with pytest.raises(CheckpointError, match="written by 4 processes and this is a run of 1"):
        again.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1}, {"a": 2}, "a was 1, is 2"),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, "a.c was 2, is 3"),
        ({"a": 1, "b": 2}, {"a": 1}, "b was 2, is None"),
        ({"a": "x" * 90}, {"a": 1}, f"a was {'x' * 57}…, is 1"),
    ],
)
def test_the_first_difference_is_named(was, now, says):
    assert difference(was, now) == says
