"""compile: auto is chosen by cost, measured, told and kept, and touches nothing else."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from children import ended, free_port, join, start
from small import (
    ALL,
    COLD,
    HEAD,
    Pixels,
    arguments,
    changed,
    images,
    network,
    state,
    trained,
    trainer,
)
from torch import nn
from transformers import TrainerCallback

from hf_transfer.base.errors import UserError
from hf_transfer.base.processes import leave
from hf_transfer.training.machine import compiling
from hf_transfer.training.machine.compiling import NOTE, expected_seconds, judged, not_worth
from hf_transfer.training.trainer import TransferTrainer

LONG = {**COLD, "epochs": 6, "batch_size": 7}  # 4 steps an epoch, the last of 3 images
AT = compiling.WARM + compiling.STEPS + 1  # where it chooses; one step before is not whole


# --- numbers to a decision ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_cpu", "share"), [(True, compiling.CPU_SAVING), (False, compiling.SAVING)]
)
def test_compiling_is_not_tried_where_it_cannot_win_back_what_it_takes(on_cpu, share):
    enough = expected_seconds(50) / share / 0.3
    assert not_worth(int(enough) + 1, 0.3, 50, on_cpu) is None
    assert not_worth(int(enough), 0.3, 50, on_cpu) is not None
    assert not_worth(int(enough) + 1, 0.3, 55, on_cpu) is not None  # a larger one takes longer
    assert not_worth(10**9, 0.0, 50, on_cpu) is not None


def test_what_is_not_worth_the_try_is_told_in_numbers(monkeypatch):
    monkeypatch.setattr(compiling, "expected_seconds", lambda layers: 40.0)
    assert not_worth(40, 0.3, 9, on_cpu=False) == (
        "40 steps of 0.3 s could save 4.0 s at most, compiling takes about 40 s"
    )


@pytest.mark.parametrize(
    ("compiled", "kept"), [(0.21, True), (0.3 / compiling.GAIN, False), (0.3, False), (0.42, False)]
)
def test_the_faster_is_kept_unless_it_gains_next_to_nothing(compiled, kept):
    found, why = judged(1210, 0.3, compiled, 42.0)
    assert found == kept
    assert why.startswith("1,210 steps of 0.3 s would take ")
    assert f"{compiled:.3g} s each, compiling took 42 s" in why
    assert why.endswith("; less than 5% may be noise") == (not kept and compiled < 0.3)


# --- measured in a phase, by a clock that the test turns ----------------------------------------


class Clock:
    """Tells the seconds that networks are said to take, and counts what runs compiled."""

    def __init__(self, plain=10.0, compiled=7.0, compiling=40.0, fails=None):
        self.plain, self.compiled, self.compiling, self.fails = plain, compiled, compiling, fails
        self.seconds, self.made, self.batches = 0.0, 0, []

    def make(self, model):
        self.made += 1
        return Compiled(model, self)

    def run(self, module, args):
        self.seconds += self.plain * module.training


class Compiled(nn.Module):
    """Stands for a compiled network: the same answers in other seconds."""

    def __init__(self, inner, clock):
        super().__init__()
        self.inner, self.clock, self.calls = inner, clock, 0

    def forward(self, **inputs):
        clock = self.clock
        if clock.fails and not self.calls:
            raise RuntimeError(clock.fails)
        clock.seconds += clock.compiled - clock.plain + clock.compiling * (not self.calls)
        self.calls += 1
        clock.batches.append(len(inputs["pixel_values"]))
        return self.inner(**inputs)


@pytest.fixture
def clock(monkeypatch):
    return turned(monkeypatch)


def turned(patch, **seconds):
    """Return a clock that is asked in place of the machine's."""
    made = Clock(**seconds)
    patch.setattr(compiling, "now", lambda device: made.seconds)
    patch.setattr(compiling, "compiled", made.make)
    patch.setattr(compiling, "compiler", lambda: "g++")
    return made


def timed(clock, dropout=0.3):
    model = network(dropout=dropout)
    model.register_forward_pre_hook(clock.run)
    return model


def run(tmp_path, clock, phase=LONG, **options):
    return trained(tmp_path / "auto", [phase], timed(clock), auto_compile=True, **options)


def test_what_pays_is_compiled_for_the_rest_of_the_phase_and_told(tmp_path, clock, caplog):
    caplog.set_level(logging.INFO)
    clock.plain, clock.compiled = 100.0, 70.0
    report = run(tmp_path, clock).reports[0]
    line = "compiled: 19 steps of 100 s would take 70 s each, compiling took 1 min 50 s"
    assert f"phase 1 all: {line}" in caplog.text
    assert report.compiled == {
        "compiled": True,
        "why": line.removeprefix("compiled: "),
        "step": AT,
        "seconds": {"plain_step": 100.0, "compiled_step": 70.0, "compiling": 110.0},
    }
    assert clock.made == 1
    assert clock.batches == [7] * len(clock.batches)  # any other would be compiled again


@pytest.mark.parametrize("compiled", [70.0, 100.0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_measuring_leaves_no_trace_in_what_is_learned(tmp_path, clock, compiled, accumulate):
    """Statistics, gradients and random numbers: a network that answers the same learns the same."""
    clock.plain, clock.compiled = 100.0, compiled
    phase = {**LONG, "accumulate": accumulate, "epochs": 6 * accumulate, "augment": "light"}
    plain = trained(tmp_path / "plain", [phase], network(dropout=0.3))
    made = run(tmp_path, clock, phase)
    assert made.reports[0].compiled["compiled"] == (compiled < 100)
    assert clock.made == 1
    assert changed(state(plain.model), state(made.model)) == set()


def test_what_cannot_pay_is_not_tried(tmp_path, clock, caplog):
    caplog.set_level(logging.INFO)
    clock.plain = 0.1
    report = run(tmp_path, clock).reports[0]
    assert not report.compiled["compiled"]
    assert "phase 1 all: not compiled: 19 steps of 0.1 s could save 0.2 s at most" in caplog.text
    assert clock.made == 0


def test_a_failure_is_one_line_and_the_phase_goes_on_as_it_was(tmp_path, clock, caplog):
    clock.plain, clock.fails = 100.0, "backend raised:\nNoCompiler: there is none\n\nand more"
    plain = trained(tmp_path / "plain", [LONG], network(dropout=0.3))
    made = run(tmp_path, clock)
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "phase 1 all: not compiled: compiling failed: backend raised: NoCompiler: there is none"
    ]
    assert made.reports[0].compiled["why"] in said[0]
    assert changed(state(plain.model), state(made.model)) == set()


def test_without_a_compiler_nothing_is_tried_and_a_warning_says_so(
    tmp_path, clock, monkeypatch, caplog
):
    monkeypatch.setattr(compiling, "compiler", lambda: None)
    clock.plain = 100.0
    run(tmp_path, clock)
    assert (
        "not compiled: compiling needs a C++ compiler (CXX, g++ or clang++); install one"
        in caplog.text
    )
    assert clock.made == 0


@pytest.mark.parametrize(
    ("phase", "why"),
    [
        ({**HEAD, "epochs": 9, "features": "cached"}, "it trains on cached features"),
        ({**ALL, "cold_head": True, "batch_size": 8}, "3 steps are too few to time"),
        ({**COLD, "batch_size": 24, "epochs": 4}, "4 steps are too few to time"),
    ],
)
def test_what_is_not_compiled_whatever_it_takes_says_why(tmp_path, clock, phase, why):
    clock.plain = 1e6
    found = run(tmp_path, clock, phase).reports[0].compiled
    assert (found["compiled"], found["step"]) == (False, 0)
    assert why in found["why"]
    assert clock.made == 0


def test_sharded_parameters_are_not_compiled():
    held = SimpleNamespace(watch=SimpleNamespace(saves=False), shards=True)
    assert "sharded (FSDP)" in compiling.Compiling(held, Path("x"), False)._ruled_out()


def test_each_phase_chooses_for_itself(tmp_path, clock):
    clock.plain = 100.0
    solved, short = {"train": "head", "solve": "lbfgs"}, {**LONG, "name": "short", "epochs": 1}
    phases = [solved, LONG, short]
    made = trained(tmp_path, phases, timed(clock), auto_compile=True)
    assert [r.compiled.get("compiled") for r in made.reports] == [None, True, False]
    assert trained(tmp_path / "b", [LONG]).reports[0].compiled == {}


def test_what_is_compiled_anyway_is_not_weighed(tmp_path):
    args = arguments(tmp_path, torch_compile=True)
    with pytest.raises(UserError, match="auto_compile and torch_compile=True exclude each other"):
        TransferTrainer(network(), args, [COLD], auto_compile=True)


# --- the same choice after an interruption, and in all processes ---------------------------------


class Leave(TrainerCallback):
    """Ends a run as a crash would, after so many steps."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(tmp_path, monkeypatch, step=14, **seconds):
    """Train to a step, then on with a clock of other seconds; return both and the second run."""
    first = turned(monkeypatch, plain=100.0, compiled=70.0)
    saving = {"save_strategy": "epoch", "auto_compile": True}
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, [LONG], timed(first), callbacks=[Leave(step)], **saving)
    note = json.loads((tmp_path / "phase-1-all" / NOTE).read_text())
    assert (note["compiled"], note["step"]) == (True, AT)
    second = turned(monkeypatch, **seconds)
    made = trainer(tmp_path, [LONG], timed(second), **saving)
    made.train(resume_from_checkpoint=True)
    return second, made


@pytest.mark.parametrize(
    ("step", "whole"),
    [(14, 3 * 3), (AT + 1, 2 + 4 * 3)],  # the second goes on from before the choice: plain till it
)
def test_an_interrupted_phase_goes_on_with_the_choice_that_it_had(
    tmp_path, monkeypatch, step, whole
):
    second, made = interrupted(tmp_path, monkeypatch, step, plain=100.0, compiled=200.0)
    assert made.reports[0].compiled["seconds"]["compiled_step"] == 70.0
    assert second.made == 1
    assert len(second.batches) == 1 + whole  # the first is compiled aside


def test_a_choice_that_does_not_compile_any_more_is_told(tmp_path, monkeypatch, caplog):
    plain = trained(tmp_path / "plain", [LONG], network(dropout=0.3))
    _, made = interrupted(tmp_path, monkeypatch, plain=100.0, fails="no compiler here")
    assert "phase 1 all: not compiled: compiling failed: no compiler here" in caplog.text
    assert not made.reports[0].compiled["compiled"]
    assert changed(state(plain.model), state(made.model)) == set()


def test_a_phase_that_begins_anew_chooses_anew(tmp_path, monkeypatch):
    interrupted(tmp_path, monkeypatch, plain=100.0, compiled=70.0)
    third = turned(monkeypatch, plain=100.0, compiled=200.0)
    options = {"save_strategy": "epoch", "auto_compile": True}
    report = trained(tmp_path, [LONG], timed(third), **options).reports[0]
    assert not report.compiled["compiled"]


def choose(rank, port, folder, own):
    """Be one of two processes, whose clocks or compilers differ."""
    join(rank, 2, port)
    patch = pytest.MonkeyPatch()
    clock = turned(patch, **own[rank])
    made = run(folder / str(rank), clock)
    torch.save((made.reports[0].compiled, state(made.model)), folder / f"{rank}.pt")
    patch.undo()
    del made
    leave()


@pytest.mark.parametrize(
    ("other", "kept"),
    [({"compiled": 800.0}, True), ({"compiled": 999.0}, False), ({"fails": "none here"}, False)],
)
def test_all_processes_choose_what_suits_the_slowest(tmp_path, other, kept):
    port, own = free_port(), [{"plain": 1e3, "compiled": 700.0}, {"plain": 1e3, **other}]
    children = [
        start(choose, tmp_path / f"log-{rank}", rank, port, tmp_path, own) for rank in range(2)
    ]
    statuses = [ended(child) for child in children]
    assert statuses == [0, 0], "".join(path.read_text() for path in tmp_path.glob("log-*"))
    (one, weights), (two, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one == two
    assert one["compiled"] == kept
    assert ("none here" in one["why"]) == ("fails" in other)
    assert changed(weights, others) == set()


# --- for real -----------------------------------------------------------------------------------


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.fc = nn.Dropout(0.3), nn.Linear(4, 3)

    def forward(self, pixel_values, labels=None):
        features = self.norm(self.conv(pixel_values)).relu().mean((2, 3))
        return {"logits": self.fc(self.drop(features))}


def really(folder, patch, **options):
    """Train a tiny network on its own set, compiled as soon as it may be."""
    patch.setattr(compiling, "expected_seconds", lambda layers: 0.0)
    patch.setattr(compiling, "GAIN", 0.0)
    own = Pixels(images(), network())
    phase = {**COLD, "epochs": 5, "batch_size": 4, "accumulate": 2, "optimizer": "sgd", "lr": 0.1}
    own = {"train_dataset": own, "eval_dataset": own, "compute_metrics": None}
    return trained(folder, [phase], Tiny(), head=["fc.*"], **own, **options)


def apart(one, two):
    return max((one[name] - two[name]).abs().max().item() for name in one)


@pytest.mark.slow
def test_a_network_that_is_really_compiled_learns_the_same_dropout_included(tmp_path, monkeypatch):
    plain = really(tmp_path / "plain", monkeypatch)
    torch._dynamo.utils.counters.clear()
    made = really(tmp_path / "auto", monkeypatch, auto_compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # for trial and steps
    found = made.reports[0].compiled
    assert found["compiled"]
    assert found["seconds"]["compiling"] > found["seconds"]["compiled_step"] > 0
    assert apart(state(plain.model), state(made.model)) < 1e-5
    assert made.reports[0].checks == plain.reports[0].checks


def test_a_compiler_that_fails_is_named_and_the_phase_goes_on(tmp_path, monkeypatch, caplog):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(broken),))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    plain = really(tmp_path / "plain", monkeypatch)
    made = really(tmp_path / "auto", monkeypatch, auto_compile=True)
    [said] = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert said.startswith("phase 1 all: not compiled: compiling failed: ")
    assert "No working C++ compiler found" in said
    assert "TORCHDYNAMO_VERBOSE" not in said
    assert changed(state(plain.model), state(made.model)) == set()


def wrapped(rank, port, folder):
    """Be one of two processes that train plain, and compiled inside their wrapper."""
    join(rank, 2, port)
    patch = pytest.MonkeyPatch()
    patch.setattr(compiling, "compiled", lambda model: torch.compile(model, backend="aot_eager"))
    ends = [really(folder / f"{rank}", patch, auto_compile=auto) for auto in (False, True)]
    told = ends[1].reports[0].compiled["compiled"]
    torch.save((told, *(state(made.model) for made in ends)), folder / f"{rank}.pt")
    patch.undo()
    del ends
    leave()


@pytest.mark.slow
def test_two_processes_compile_what_they_wrap_and_stay_as_one(tmp_path):
    port = free_port()
    children = [start(wrapped, tmp_path / f"log-{r}", r, port, tmp_path) for r in range(2)]
    statuses = [ended(child) for child in children]
    assert statuses == [0, 0], "".join(path.read_text() for path in tmp_path.glob("log-*"))
    (told, plain, made), (_, _, other) = (torch.load(tmp_path / f"{r}.pt") for r in range(2))
    assert told
    assert apart(plain, made) < 1e-5
    assert changed(made, other) == set()
