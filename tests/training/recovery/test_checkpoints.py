"""Checkpoints are whole or not there; a torn one is seen, named, and passed over."""

import errno
import json
import logging
import os
import resource

import pytest
import torch
from small import COLD, changed, network, state, trained, trainer
from torch import nn

from hf_transfer.base.files import MARK, mark
from hf_transfer.base.processes import Processes
from hf_transfer.results.report import PhaseReport
from hf_transfer.training.recovery import checkpoints
from hf_transfer.training.recovery.checkpoints import CheckpointError

ONE = Processes()


def write(folder, step, about=None, content="hello"):
    checkpoints.write(
        folder, f"checkpoint-{step}", lambda aside: (aside / "a.txt").write_text(content),
        about or {"step": step}, ONE,
    )  # fmt: skip


def test_what_is_written_is_read_with_what_it_says_of_itself(tmp_path):
    write(tmp_path, 3, {"lr": 0.1, "phase": {"name": "head"}})
    found = checkpoints.newest(tmp_path)
    assert found.folder == tmp_path / "checkpoint-3"
    assert found.about == {"lr": 0.1, "phase": {"name": "head"}}
    assert (found.folder / "a.txt").read_text() == "hello"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


@pytest.mark.parametrize(
    ("tear", "says"),
    [
        (lambda f: (f / "a.txt").write_text("hell"), "a.txt has 4 bytes, not 5"),
        (lambda f: (f / "a.txt").write_text("hellp"), "content of a.txt is not what was written"),
        (lambda f: (f / "a.txt").unlink(), "it has no a.txt"),
        (lambda f: (f / "manifest.json").unlink(), "it has no manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{"), "it is torn"),
        (lambda f: (f / "manifest.json").write_text("[]"), "it is torn"),
        (lambda f: (f / "manifest.json").write_text('{"files": {}}'), "it is torn"),
    ],
)
def test_a_torn_checkpoint_is_named_and_the_one_before_is_used(tmp_path, tear, says, caplog):
    for step in (2, 10, 9):
        write(tmp_path, step)
    assert checkpoints.newest(tmp_path).about == {"step": 10}
    tear(tmp_path / "checkpoint-10")
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest(tmp_path).about == {"step": 9}
    assert says in caplog.text
    assert "checkpoint-10 is not used" in caplog.text


def test_without_a_whole_checkpoint_there_is_none(tmp_path):
    assert checkpoints.newest(tmp_path / "nothing") is None
    write(tmp_path, 2)
    (tmp_path / "checkpoint-2" / "a.txt").unlink()
    assert checkpoints.newest(tmp_path) is None


def test_drop_keeps_the_newest_and_what_it_did_not_write(tmp_path):
    for step in (1, 2, 3, 30):
        write(tmp_path, step)
    (tmp_path / "checkpoint-7").mkdir()  # a user's, without our manifest
    mark(tmp_path / checkpoints.ASIDE, checkpoints.ASIDE)
    (tmp_path / checkpoints.ASIDE / "checkpoint-31").mkdir()  # a killed process's
    checkpoints.drop(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-30", "checkpoint-7"]
    checkpoints.drop(tmp_path, end=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-7"]


@pytest.mark.parametrize("theirs", ["checkpoint-2", checkpoints.ASIDE])
def test_a_folder_of_others_is_neither_replaced_nor_emptied(tmp_path, theirs):
    write(tmp_path, 1)
    (tmp_path / theirs).mkdir()
    (tmp_path / theirs / "weights.bin").write_text("mine")
    with pytest.raises(CheckpointError, match=f"hf_transfer did not write .*{theirs}; move it"):
        write(tmp_path, 2)
    assert (tmp_path / theirs / "weights.bin").read_text() == "mine"
    assert checkpoints.newest(tmp_path).about == {"step": 1}


def test_drop_keeps_the_newest_good_ones_too_and_no_half_of_one(tmp_path, monkeypatch):
    for step in range(1, 10):
        write(tmp_path, step, {"step": step, "good": step % 3 == 0})
    checkpoints.drop(tmp_path, keep=2, good=2)
    assert [path.name[-1] for path in checkpoints.numbered(tmp_path)] == ["9", "8", "6"]
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda *args, **kwargs: None)  # as if killed
    checkpoints.drop(tmp_path, keep=1)
    assert [path.name[-1] for path in checkpoints.numbered(tmp_path)] == ["9"]


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line_leaves_nothing_half_written_and_the_rest_whole(
    tmp_path, monkeypatch
):
    write(tmp_path, 1)
    with pytest.raises(
        CheckpointError, match="No space left on device; what was saved before"
    ) as e:
        checkpoints.write(tmp_path, "checkpoint-2", full, {}, ONE)
    assert "\n" not in str(e.value)
    monkeypatch.setattr(checkpoints, "_seal", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoints.newest(tmp_path).about == {"step": 1}


@pytest.mark.parametrize("save", ["safetensors", "torch"])
def test_what_the_libraries_raise_when_no_more_can_be_written_is_understood(tmp_path, save):
    """With a limit on the size of files, in a child: what a full disk does to a real write."""
    tensors = {"w": torch.zeros(2**20)}

    def fill(aside):
        if save == "torch":
            torch.save(tensors, aside / "w.pt")
        else:
            checkpoints.save_tensors(tensors, aside / "w.safetensors")

    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        try:
            checkpoints.write(tmp_path, "checkpoint-1", fill, {}, ONE)
        except CheckpointError as error:
            os._exit(0 if "cannot write" in str(error) and "\n" not in str(error) else 3)
        except BaseException:
            os._exit(4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not list(tmp_path.iterdir())


def test_a_process_killed_as_it_marked_the_unfinished_folder_stops_no_later_one(tmp_path):
    aside = tmp_path / "unfinished"
    aside.mkdir()
    write(tmp_path, 1)
    aside.mkdir()
    (aside / ".0123456789abcdef").write_text("")  # the mark, as it was being written
    write(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    aside.mkdir()
    (aside / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="hf_transfer did not write .*unfinished"):
        write(tmp_path, 3)
    assert (aside / "thesis.txt").read_text() == "mine"


def test_the_mark_of_an_unfinished_folder_is_the_last_that_is_removed(tmp_path, monkeypatch):
    gone = []
    real = checkpoints.shutil.rmtree

    def noted(path, **options):
        gone.append((path.name, (path.parent / MARK).exists()))
        real(path, **options)

    monkeypatch.setattr(checkpoints.shutil, "rmtree", noted)
    checkpoints._begin(tmp_path / "unfinished")
    (tmp_path / "unfinished" / "checkpoint-1").mkdir()
    checkpoints._clear(tmp_path / "unfinished")
    assert gone == [("checkpoint-1", True), ("unfinished", False)]
    assert not list(tmp_path.iterdir())


def test_any_other_failure_is_not_taken_for_a_full_disk(tmp_path):
    def broken(aside):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        checkpoints.write(tmp_path, "checkpoint-1", broken, {}, ONE)


def test_training_on_a_full_disk_stops_in_one_line_with_the_earlier_checkpoint_whole(
    tmp_path, monkeypatch
):
    real, calls = checkpoints.save_tensors, []

    def fills_up(tensors, path):
        calls.append(path)
        if len(calls) > 2:
            full()
        real(tensors, path)

    monkeypatch.setattr(checkpoints, "save_tensors", fills_up)
    with pytest.raises(CheckpointError, match=r"cannot write .*checkpoint-3: No space left"):
        trained(
            tmp_path, [{**COLD, "epochs": 3, "best": "last"}], eval_dataset=None,
            checkpoint_seconds=0,
        )  # fmt: skip
    folder = tmp_path / "phase-1-all"
    assert checkpoints.newest(folder).folder.name == "checkpoint-2"
    monkeypatch.undo()
    again = trainer(
        tmp_path, [{**COLD, "epochs": 3, "best": "last"}], eval_dataset=None, checkpoint_seconds=0
    )
    again.train(resume_from_checkpoint=True)
    whole = trained(tmp_path / "b", [{**COLD, "epochs": 3, "best": "last"}], eval_dataset=None)
    assert changed(state(whole.model), state(again.model)) == set()


# --- tensors and the end of a phase ----------------------------------------------------------


def test_tensors_are_saved_whatever_their_memory_format_or_sharing(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
            self.b = nn.Linear(4, 4)
            self.c = nn.Linear(4, 4)
            self.c.weight = self.b.weight

    model = Tied()
    before = state(model)
    checkpoints.save_tensors(model.state_dict(), tmp_path / checkpoints.WEIGHTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    checkpoints.load_weights(model, tmp_path)
    assert changed(before, state(model)) == set()
    assert model.c.weight is model.b.weight


def test_the_end_of_a_phase_comes_back_with_its_report(tmp_path):
    model = network()
    report = PhaseReport("head", ("head",), 3, 9, 2.0, 6, 1.5, history=({"loss": 0.1},))
    checkpoints.write_phase(tmp_path, model, report, {"start": "x"}, ONE)
    found, again = checkpoints.read_phase(tmp_path)
    assert again == report
    assert found.about == {"start": "x"}
    assert json.loads((found.folder / "phase.json").read_text())["name"] == "head"
    (found.folder / checkpoints.WEIGHTS).write_bytes(b"")
    assert checkpoints.read_phase(tmp_path) is None
