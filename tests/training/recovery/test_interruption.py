"""What is watched while a phase trains: SIGTERM, Ctrl-C, workers, time."""

import os
import shlex
import signal
import time
from contextlib import suppress

import pytest
from children import ended, start
from PIL import Image
from small import COLD, HEAD, Pixels, changed, images, network, state, trained, trainer
from transformers import TrainerCallback

from hf_transfer.base import console
from hf_transfer.base.errors import UserError
from hf_transfer.cli import main
from hf_transfer.training.recovery import checkpoints


@pytest.fixture(autouse=True)
def usual_ctrl_c():
    """Python's own answer to Ctrl-C, which shells turn off in what they start behind them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Call(TrainerCallback):
    """Sends a signal at a step, to this process alone."""

    def __init__(
        self, step: int, at: str = "on_step_end", signals: tuple[int, ...] = (signal.SIGTERM,)
    ) -> None:
        self.step, self.signals = step, signals
        setattr(self, at, self.call)

    def call(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for number in self.signals:
                os.kill(os.getpid(), number)


PHASE = {**COLD, "epochs": 3}  # of three steps each


@pytest.mark.parametrize(
    ("step", "at", "name"),
    [
        (2, "on_step_end", "checkpoint-2"),
        (3, "on_step_end", "checkpoint-3"),  # the last of an epoch: after its evaluation
        (3, "on_evaluate", "checkpoint-3"),
        (4, "on_step_begin", "checkpoint-5"),
        (9, "on_step_end", "checkpoint-end"),  # the last of all
    ],
)
def test_sigterm_saves_where_going_on_is_exact(tmp_path, step, at, name, caplog):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as error:
        trained(tmp_path / "a", [PHASE], callbacks=[Call(step, at)], checkpoint_seconds=1000)
    assert error.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped by SIGTERM in phase all; " in caplog.text
    assert "--resume continues from there" in caplog.text
    found = sorted(path.name for path in (tmp_path / "a" / "phase-1-all").iterdir())
    assert found == [name]
    again = trainer(tmp_path / "a", [PHASE], checkpoint_seconds=1000)
    again.train(resume_from_checkpoint=True)
    whole = trained(tmp_path / "b", [PHASE])
    assert changed(state(whole.model), state(again.model)) == set()


def test_ctrl_c_saves_as_sigterm_does_and_the_resumed_run_ends_like_the_unbroken_one(
    tmp_path, caplog
):
    before = signal.getsignal(signal.SIGINT)
    call = Call(2, signals=(signal.SIGINT,))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "a", [PHASE], callbacks=[call], checkpoint_seconds=1000)
    assert signal.getsignal(signal.SIGINT) is before
    assert "saving; press Ctrl-C again to stop at once" in caplog.text
    assert "stopped by Ctrl-C in phase all; saved checkpoint-2" in caplog.text
    again = trainer(tmp_path / "a", [PHASE], checkpoint_seconds=1000)
    again.train(resume_from_checkpoint=True)
    whole = trained(tmp_path / "b", [PHASE])
    assert changed(state(whole.model), state(again.model)) == set()


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    call = Call(2, "on_step_begin", signals=(signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "a", [PHASE], callbacks=[call], checkpoint_seconds=1000)
    assert not list((tmp_path / "a" / "phase-1-all").glob("checkpoint-*"))


def test_a_ctrl_c_that_python_drops_before_the_first_step_is_answered_after_it(tmp_path):
    """An exception inside a `__del__` or the callback of a weak reference ends nothing."""

    class Dropped(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                made.runner.interruption.stepping = False  # as before the first step
                with suppress(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGINT)
                made.runner.interruption.stepping = True

    made = trainer(tmp_path, [PHASE], callbacks=[Dropped()], checkpoint_seconds=1000)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    assert (tmp_path / "phase-1-all" / "checkpoint-2").exists()
    made.pop_callback(Dropped)
    made.train()
    assert len(made.reports) == 1


def test_ctrl_c_where_nothing_is_saved_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "a", [PHASE], callbacks=[Call(2, signals=(signal.SIGINT,))])


def test_sigterm_ends_a_run_that_saves_nothing_at_once(tmp_path):
    child = start(_train_and_call, tmp_path / "log", tmp_path / "out")
    assert ended(child) == -signal.SIGTERM


def _train_and_call(out):
    trained(out, [PHASE], callbacks=[Call(2)])


def test_sigterm_to_all_processes_of_a_job_spares_the_workers_until_it_is_saved(tmp_path):
    child = start(_train_and_call_all, tmp_path / "log", tmp_path / "out")
    assert ended(child) == 143, (tmp_path / "log").read_text()
    assert "stopped by SIGTERM in phase all; saved checkpoint-2" in (tmp_path / "log").read_text()
    assert checkpoints.newest(tmp_path / "out" / "phase-1-all").folder.name == "checkpoint-2"


def _train_and_call_all(out):
    os.setpgrp()

    class CallAll(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.killpg(0, signal.SIGTERM)
                time.sleep(0.3)

    trained(out, [PHASE], callbacks=[CallAll()], checkpoint_seconds=1000, dataloader_num_workers=2)


class Deadly(Pixels):
    def __getitem__(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_dies_is_one_line_with_the_phase(tmp_path):
    model = network()
    with pytest.raises(UserError, match=r"^phase all: a data worker died .*workers: 0") as error:
        trained(
            tmp_path, [PHASE], model, train_dataset=Deadly(images(), model),
            data_collator=None, eval_dataset=None, dataloader_num_workers=1,
        )  # fmt: skip
    assert "\n" not in str(error.value)


def test_checkpoints_are_written_by_time_and_two_are_kept(tmp_path, monkeypatch):
    seen = []

    class See(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            names = (path.name for path in (tmp_path / "phase-1-all").glob("checkpoint-*"))
            seen.append(sorted(names))

    trained(tmp_path, [PHASE], callbacks=[See()], checkpoint_seconds=0)
    assert seen[0] == ["checkpoint-1"]
    assert seen[1] == ["checkpoint-1", "checkpoint-2"]
    assert seen[-1] == ["checkpoint-7", "checkpoint-8"]
    assert sorted(p.name for p in (tmp_path / "phase-1-all").iterdir()) == ["checkpoint-end"]
    seen.clear()
    trained(tmp_path, [PHASE], callbacks=[See()], checkpoint_seconds=1000)
    assert seen == []


def test_a_phase_of_a_fraction_of_an_epoch_is_resumed_to_its_own_end(tmp_path):
    steps = {**HEAD, "features": "live"}
    del steps["epochs"]
    for length in ({"steps": 5}, {"epochs": 1.5}):
        phase = {**steps, **length}
        folder = tmp_path / next(iter(length))
        with pytest.raises(SystemExit):
            trained(folder, [phase], callbacks=[Call(4)], checkpoint_seconds=1000)
        again = trainer(folder, [phase], checkpoint_seconds=1000)
        again.train(resume_from_checkpoint=True)
        assert again.reports[0].steps == 5
        whole = trained(folder / "whole", [phase])
        assert changed(state(whole.model), state(again.model)) == set()
        assert whole.reports[0].history[-1]["loss"] == again.reports[0].history[-1]["loss"]


def commanded(folder, words):
    """Be a command in a folder; what it prints goes to the file `printed`."""
    os.chdir(folder)
    with open("printed", "w") as file:
        os.dup2(file.fileno(), 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise SystemExit(main(words))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_stopped_prints_the_whole_command_that_resumes_it(tmp_path, number):
    """As a user sees it: from another process, while it trains, with a blank in the path."""
    for i in range(12):
        place = tmp_path / "two photos" / f"{i % 2}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * i, 9, 200)).save(place)
    words = ["train", "full", "--data", "two photos", "--backbone", "timm/test_resnet", "--set"]
    words += ["pretrained=false", "--set", "data.image_size=32", "--set", "phases.0.epochs=90000"]
    said, printed = tmp_path / "said", tmp_path / "printed"
    child = start(commanded, said, tmp_path, words)
    while not (printed.exists() and "\n  epoch 1 " in printed.read_text()):
        assert child.exitcode is None, said.read_text()
        time.sleep(0.05)
    os.kill(child.pid, number)
    assert ended(child, 60) == (143 if number == signal.SIGTERM else 130), said.read_text()
    lines = said.read_text().splitlines()
    [saved] = [line for line in lines if "; saved checkpoint-" in line]
    assert "runs/full/phase-1-all" in saved
    again = lines[-1].partition("; to continue: ")[2]
    assert shlex.split(again) == ["hf-transfer", *words, "--resume"]
    assert checkpoints.newest(tmp_path / "runs" / "full" / "phase-1-all") is not None


def test_sigterm_before_anything_trains_ends_in_words_too():
    with pytest.raises(SystemExit) as error, console.stopped_in_words():
        os.kill(os.getpid(), signal.SIGTERM)
    assert error.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
