"""A phase that diverges begins again from its start, at a tenth of its rates."""

import pytest
import torch
from small import COLD, HEAD, changed, network, state, trained, trainer
from transformers import TrainerCallback

from hf_transfer import recovery
from hf_transfer.facts import warnings_of
from hf_transfer.groups import group_layers
from hf_transfer.phases import make_phases
from hf_transfer.recipe import parse_phase
from hf_transfer.watch import DivergedError


class Explode(TrainerCallback):
    """Spoils the weights in the second epoch wherever the rate is above a limit."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.epoch > 1 and args.learning_rate > self.limit:
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))


LOW = {**HEAD, "lr": 1e-4}
PHASE = {**COLD, "lr": 1e-2, "epochs": 3, "on_nan": "rollback"}


def test_a_phase_that_diverges_begins_again_as_if_it_had_had_the_lower_rate(tmp_path, caplog):
    done = trained(tmp_path / "a", [LOW, PHASE], callbacks=[Explode(5e-4)])
    plain = trained(tmp_path / "b", [LOW, {**PHASE, "lr": 1e-4}])
    assert [report.rollbacks for report in done.reports] == [0, 2]
    assert changed(state(plain.model), state(done.model)) == set()
    assert done.reports[1].rates[0]["lr"] == pytest.approx(1e-4)
    assert caplog.text.count("the phase begins again from the weights it started with") == 2
    assert "phase all, epoch 2" in caplog.text
    assert "lr: 0.001" in caplog.text
    assert any("begun again 2 times" in line for line in warnings_of(done))


def test_without_the_setting_the_run_stops_and_with_it_after_some_times(tmp_path):
    with pytest.raises(DivergedError, match="phase all, epoch 2"):
        trained(tmp_path, [{**PHASE, "on_nan": "stop"}], callbacks=[Explode(5e-4)])
    with pytest.raises(DivergedError, match="lr: 1e-06"):  # a tenth of the last that was tried
        trained(tmp_path, [PHASE], callbacks=[Explode(0.0)])


def test_a_run_that_is_killed_after_it_began_again_goes_on_at_the_lower_rate(tmp_path):
    callback, options = [Explode(5e-3)], {"checkpoint_seconds": 0}
    whole = trained(tmp_path / "whole", [PHASE], callbacks=callback)

    class Leave(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5 and args.learning_rate < 5e-3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "a", [PHASE], callbacks=[*callback, Leave()], **options)
    assert recovery.times_of(tmp_path / "a" / "phase-1-all") == 1
    again = trainer(tmp_path / "a", [PHASE], callbacks=callback, **options)
    again.train(resume_from_checkpoint=True)
    assert again.reports[0].rollbacks == 1
    assert again.reports[0].steps == whole.reports[0].steps
    assert changed(state(whole.model), state(again.model)) == set()
    anew = trained(tmp_path / "a", [PHASE], **options)  # without resuming nothing of it is left
    assert anew.reports[0].rollbacks == 0


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
        phase = make_phases([spec], groups, layout)[0]
        slower = recovery.slowed(phase, 2).spec
        assert slower.lr == pytest.approx(1e-4)
        assert slower.lr_geometric in (None, pytest.approx((1e-6, 1e-4)))
        assert slower.lrs in ((), (("head", pytest.approx(1e-3)),))
    assert recovery.slowed(phase, 0) is phase
