"""What a user sees while a run trains."""

from small import ALL, HEAD, trained

from hf_transfer.base import bars
from hf_transfer.progress import EpochLines, TrainingBar


def test_a_bar_on_a_terminal_shows_phase_epoch_loss_and_accuracy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bars, "visible", lambda: True)
    monkeypatch.setattr(bars, "DELAY_SECONDS", 0.0)
    lines = []
    callbacks = [EpochLines(lines.append), TrainingBar()]
    trained(tmp_path, [HEAD, {**ALL, "epochs": 2}], callbacks=callbacks)
    shown = capsys.readouterr().err
    for part in ("phase-1-head", "phase-2-all", "6/6", "epoch=2.0/2", "loss=", "accuracy=", "<"):
        assert part in shown, part
    assert [line.split(",")[0] for line in lines] == [
        "  epoch 1 of 2", "  epoch 2 of 2", "  epoch 1 of 2", "  epoch 2 of 2",
    ]  # fmt: skip


def test_where_the_output_is_no_terminal_there_is_no_bar(tmp_path, capsys):
    trained(tmp_path, [HEAD], callbacks=[TrainingBar()])
    assert capsys.readouterr().err == ""


def test_a_head_that_is_solved_for_has_no_steps_to_show(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bars, "visible", lambda: True)
    monkeypatch.setattr(bars, "DELAY_SECONDS", 0.0)
    lines = []
    callbacks = [EpochLines(lines.append), TrainingBar()]
    trained(tmp_path, [{"train": "head", "solve": "lbfgs"}], callbacks=callbacks)
    assert "phase-1-head" not in capsys.readouterr().err
    assert [line.partition(" steps")[0][:11] for line in lines] == ["  solved in"]
