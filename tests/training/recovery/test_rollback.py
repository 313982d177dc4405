"""A phase that diverges goes on from its last good checkpoint, at a tenth of its rates."""

import json
import math
import signal
from dataclasses import replace

import pytest
import torch
from children import together
from small import (
    COLD,
    HEAD,
    RESNET,
    VIT,
    Explode,
    changed,
    network,
    state,
    trained,
    trainer,
    untimed,
)
from transformers import TrainerCallback

from hf_transfer.base.errors import UserError
from hf_transfer.planning.groups import group_layers
from hf_transfer.planning.phases import make_phases
from hf_transfer.recipe.load import parse_phase
from hf_transfer.results.facts import warnings_of
from hf_transfer.training.recovery import checkpoints, rollback
from hf_transfer.training.recovery.divergence import DivergedError

LOW = {**HEAD, "lr": 1e-4}
PHASE = {**COLD, "lr": 1e-2, "epochs": 3, "on_nan": "rollback"}  # of three steps an epoch
LONG = {**PHASE, "epochs": 4, "best": "last"}
SAVED = {"checkpoint_seconds": 1000}


class Lower(TrainerCallback):
    """Divides all rates by ten at the end of an epoch: what going back to it comes to."""

    def __init__(self, *epochs: float) -> None:
        self.epochs = epochs

    def on_epoch_end(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        for _ in range(self.epochs.count(state.epoch)):
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
            lr_scheduler.base_lrs = [rate * 0.1 for rate in lr_scheduler.base_lrs]


def without_rates(history):
    return [
        {k: v for k, v in row.items() if not k.startswith("learning_rate")}
        for row in untimed(history)
    ]


def test_without_checkpoints_a_phase_begins_again_as_if_it_had_had_the_lower_rate(tmp_path, caplog):
    done = trained(tmp_path / "a", [LOW, PHASE], callbacks=[Explode(5e-4)])
    plain = trained(tmp_path / "b", [LOW, {**PHASE, "lr": 1e-4}])
    assert [report.rollbacks for report in done.reports] == [0, 2]
    assert changed(state(plain.model), state(done.model)) == set()
    assert done.reports[1].rates[0]["lr"] == pytest.approx(1e-4)
    assert caplog.text.count("the phase begins again from the weights it started with") == 2
    assert "phase all, epoch 2" in caplog.text
    assert "lr: 0.001" in caplog.text
    assert "the phase was rolled back 2 times, each time" in "".join(warnings_of(done.reports))
    done.reports[1] = replace(done.reports[1], rollbacks=1)
    assert "the phase was rolled back once and continued" in "".join(warnings_of(done.reports))


@pytest.mark.parametrize(
    "own",
    [
        {"schedule": "cosine", "best": "loss", "augment": "light"},
        {"schedule": "linear", "warmup": 0.3, "train": "lora(r=2 dropout=0.1)"},
        {"schedule": "constant", "optimizer": "sgd", "momentum": 0.9, "accumulate": 2},
    ],
)
def test_a_phase_goes_on_from_its_last_good_epoch_at_a_tenth_of_its_rates(tmp_path, caplog, own):
    phase = {**LONG, "layer_decay": 0.7, "name": "tuned", **own}
    models = [network(VIT, dropout=0.2) for _ in range(2)]
    done = trained(tmp_path / "a", [phase], models[0], callbacks=[Explode(5e-3, 2)], **SAVED)
    plain = trained(tmp_path / "b", [phase], models[1], callbacks=[Lower(2)])
    assert changed(state(plain.model), state(done.model)) == set()
    assert done.reports[0].rollbacks == 1
    assert done.reports[0].steps == plain.reports[0].steps
    one, two = done.reports[0].history, plain.reports[0].history
    assert without_rates(one) == without_rates(two)
    assert [row["learning_rate"] for row in one] == pytest.approx(
        [row["learning_rate"] for row in two], rel=1e-12
    )
    assert "phase tuned, epoch 3, by step" in caplog.text
    half = done.reports[0].steps // 2
    assert f"the phase goes on from step {half}, at 0.1 of its rates (lr: 0.001)" in caplog.text


def test_a_phase_that_diverges_at_once_again_goes_back_one_further(tmp_path, caplog):
    done = trained(tmp_path / "a", [LONG], callbacks=[Explode(5e-4, 2)], **SAVED)
    plain = trained(tmp_path / "b", [LONG], callbacks=[Lower(1, 1)])
    assert done.reports[0].rollbacks == 2
    assert changed(state(plain.model), state(done.model)) == set()
    assert "goes on from step 6, at 0.1 of its rates (lr: 0.001)" in caplog.text
    assert "goes on from step 3, at 0.1 of its rates (lr: 0.0001)" in caplog.text
    with pytest.raises(DivergedError):
        trained(tmp_path / "c", [LONG], callbacks=[Explode(0.0, 2)], **SAVED)
    assert rollback.went_back_to(tmp_path / "c" / "phase-1-all") == (6, 3, 6)


def test_a_phase_does_not_go_back_to_where_its_loss_had_risen(tmp_path):
    class Rise(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 4 and args.learning_rate > 5e-3:
                with torch.no_grad():
                    model.timm_model.fc.bias.copy_(torch.tensor([40.0, 0.0, -40.0]))

    done = trained(tmp_path / "a", [LONG], callbacks=[Rise(), Explode(5e-3, 2)], **SAVED)
    plain = trained(tmp_path / "b", [LONG], callbacks=[Lower(1)])
    assert changed(state(plain.model), state(done.model)) == set()


def test_when_checkpoints_are_written_makes_no_difference_to_where_it_goes_back(tmp_path):
    """The clock would: a run that was killed has them at other steps than one that was not."""
    ends = []
    for name, seconds in (("a", 0), ("b", 1000)):
        done = trained(
            tmp_path / name, [LONG], callbacks=[Explode(5e-3, 2.4)], checkpoint_seconds=seconds
        )
        ends.append(state(done.model))
    assert changed(*ends) == set()


def test_without_the_setting_the_run_stops_and_with_it_after_some_times(tmp_path):
    with pytest.raises(DivergedError, match="phase all, epoch 2"):
        trained(tmp_path, [{**PHASE, "on_nan": "stop"}], callbacks=[Explode(5e-4)])
    with pytest.raises(DivergedError, match="lr: 1e-06"):  # a tenth of the last that was tried
        trained(tmp_path, [PHASE], callbacks=[Explode(0.0)])


@pytest.mark.parametrize("options", [{"checkpoint_seconds": 0}, SAVED, {"save_strategy": "epoch"}])
def test_a_run_that_is_interrupted_after_it_went_back_goes_on_at_the_lower_rate(tmp_path, options):
    callback = [Explode(5e-3)]
    whole = trained(tmp_path / "whole", [PHASE], callbacks=callback, **options)

    class Leave(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5 and args.learning_rate < 5e-3:
                raise KeyboardInterrupt

    folder = tmp_path / "a" / "phase-1-all"
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "a", [PHASE], callbacks=[*callback, Leave()], **options)
    assert rollback.went_back_to(folder) == (3,)
    again = trainer(tmp_path / "a", [PHASE], callbacks=callback, **options)
    again.train(resume_from_checkpoint=True)
    assert again.reports[0].rollbacks == 1
    assert again.reports[0].steps == whole.reports[0].steps
    assert untimed(again.reports[0].history) == untimed(whole.reports[0].history)
    assert changed(state(whole.model), state(again.model)) == set()
    anew = trained(tmp_path / "a", [PHASE], **options)  # without resuming nothing of it is left
    assert anew.reports[0].rollbacks == 0
    assert rollback.went_back_to(folder) == ()
    (folder / rollback.NOTE).write_text('{"went back to": 3}')
    with pytest.raises(UserError, match="cannot read .*rollbacks.json: .*; remove it to begin"):
        rollback.went_back_to(folder)


GOES_BACK = [{**HEAD, "batch_size": 4}, {**LONG, "augment": "light", "batch_size": 4}]
KILLS = [  # in one run after the other: (function, n-th call of it in that process)
    ("hf_transfer.training.recovery.rollback:write_text", 1),  # it diverged, and nothing is noted
    ("hf_transfer.training.recovery.rollback:forget", 2),  # noted, and nothing is removed
    ("hf_transfer.training.recovery.checkpoints:_clear", 2),  # while it is removed
    ("transformers:Trainer.training_step", 2),  # before there is another checkpoint
    ("hf_transfer.training.recovery.rollback:forget", 2),  # as it goes back once more
    ("transformers:Trainer.training_step", 8),
]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "chosen"), [(1, KILLS), (2, KILLS[1:4:2])])
def test_a_run_that_is_killed_as_it_goes_back_ends_like_the_unbroken_one(tmp_path, count, chosen):
    ends = []
    for name, kills in (("unbroken", []), ("killed", chosen)):
        out, options = tmp_path / name, {"backbone": RESNET, "explode": (5e-4, 2), **SAVED}
        for kill in kills:
            statuses = together(count, out, GOES_BACK, {**options, "kill": kill})
            assert -signal.SIGKILL in statuses, said(out)
        assert together(count, out, GOES_BACK, options) == [0] * count, said(out)
        ends.append((torch.load(out / "end.pt"), json.loads((out / "end.json").read_text())))
    assert ends[0][1]["rollbacks"] == [0, 2]
    assert ends[0][1] == ends[1][1]
    assert changed(ends[0][0], ends[1][0]) == set()


def said(out):
    return "\n".join(path.read_text() for path in sorted(out.parent.glob(f"{out.name}-*.log")))


@pytest.mark.parametrize("what", ["largest weight", "optimizer's state"])
def test_nothing_that_is_not_finite_is_written_into_a_checkpoint(tmp_path, what):
    """The loss may not show it yet, and with a state that is infinite it never would."""

    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
            weight = next(p for p in model.parameters() if p.requires_grad)
            if state.global_step == 5:
                with torch.no_grad():
                    spoilt = optimizer.state[weight]["exp_avg_sq"] if "state" in what else weight
                    spoilt.view(-1)[0] = math.inf

    phase = {**PHASE, "on_nan": "stop"}
    with pytest.raises(DivergedError, match=f"by step 5: the {what} is not finite; lower the rate"):
        trained(tmp_path, [phase], callbacks=[Spoil()], checkpoint_seconds=0)
    assert checkpoints.newest(tmp_path / "phase-1-all").folder.name == "checkpoint-4"


def test_a_loss_that_explodes_without_being_infinite_stops_the_run(tmp_path):
    class Grow(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.epoch > 1:
                with torch.no_grad():
                    list(model.parameters())[-1].copy_(torch.tensor([1e6, 0.0, -1e6]))

    with pytest.raises(DivergedError, match=r"epoch \d, by step \d: the loss is \d{4,}"):
        trained(tmp_path, [{**COLD, "epochs": 4, "lr": 1e-6}], callbacks=[Grow()])


def test_all_rates_of_a_phase_are_divided(tmp_path):
    layout = network().backbone.layout
    groups = group_layers(layout)
    pairs = {"lr": [1e-4, 1e-2]}, {"lr": 1e-2, "lrs": {"head": 1e-1}}
    for rates in pairs:
        spec = parse_phase({"train": "all", "epochs": 1, "cold_head": True, **rates})
        phase = make_phases([spec], groups)[0]
        slower = rollback.slowed(phase, 2).spec
        assert slower.head_lr == pytest.approx(1e-4)
        assert slower.lr_ends in (None, pytest.approx((1e-6, 1e-4)))
        assert slower.lrs in ((), (("head", pytest.approx(1e-3)),))
    assert rollback.slowed(phase, 0) is phase
