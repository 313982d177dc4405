"""Compiling: torch.compile for a phase's steps, where their measured time says that it pays"""

from __future__ import annotations

import json
import logging
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_transfer.base.errors import UserError
from hf_transfer.base.files import write_text
from hf_transfer.base.machine import NO_COMPILER, compiler
from hf_transfer.results.words import show_seconds
from hf_transfer.training.machine.precision import now

logger = logging.getLogger(__name__)

NOTE = "compile.json"  # in the folder of a phase: what it chose, for resuming
WARM, STEPS = 1, 3  # batches that are not timed, and then those of which the median counts
# Of a step, at most. Training 180 models on an A100 was 1.41 times as fast (Ansel et al. 2024,
# PyTorch 2, ASPLOS): 0.29 of a step. On a CPU, 0.09 was the most of the four larger ones below.
SAVING, CPU_SAVING = 1 / 3, 0.1
# On one core, cold, for a network and each of its layers with parameters: 0.7 to 1.4 times what
# ResNet-10-T, ViT-Ti, ConvNeXt-A, MobileNetV3-S, test_resnet and test_vit took (40 to 126 s).
FIXED_SECONDS, LAYER_SECONDS = 30.0, 0.7
REASON = 300  # letters of a failure
GAIN = 1.05  # that a compiled step must be faster by: less is noise

Run = Callable[[nn.Module], torch.Tensor]  # a batch forward and backward through a network


@dataclass(frozen=True)
class Choice:
    """Whether the steps of a phase run compiled, from which one on, and why."""

    compiled: bool
    why: str
    step: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # that were measured
    shapes: dict[str, list[int]] = field(default_factory=dict)  # of the batches; others run plain

    @property
    def line(self) -> str:
        """Return the choice as a person reads it."""
        return f"{'' if self.compiled else 'not '}compiled: {self.why}"


# --- deciding --------------------------------------------------------------------------------


def expected_seconds(layers: int) -> float:
    """Return about how long compiling a network takes, from how many layers it has."""
    return FIXED_SECONDS + LAYER_SECONDS * layers


def not_worth(steps: int, step_seconds: float, layers: int, on_cpu: bool) -> str | None:
    """Return why so many steps to come are not worth the try; None where they may be."""
    share = CPU_SAVING if on_cpu else SAVING
    most, cost = share * steps * step_seconds, expected_seconds(layers)
    if most > cost:
        return None
    return (
        f"{steps:,} steps of {step_seconds:.3g} s could save {show_seconds(most)} at most, "
        f"compiling takes about {show_seconds(cost)}"
    )


def judged(steps: int, plain: float, compiled: float, compiling: float) -> tuple[bool, str]:
    """Return whether steps to come are faster compiled, from seconds of a step, and why.

    What compiling took is spent by now, and only told.
    """
    why = (
        f"{steps:,} steps of {plain:.3g} s would take {compiled:.3g} s each, compiling took "
        f"{show_seconds(compiling)}"
    )
    if compiled < plain <= GAIN * compiled:
        why += f"; less than {GAIN - 1:.0%} may be noise"
    return plain > GAIN * compiled, why


# --- measuring and acting --------------------------------------------------------------------


def check(trainer: Any) -> None:
    """Raise UserError where what is to be compiled where it pays is compiled anyway."""
    if trainer.auto_compile and trainer.accelerator.state.dynamo_plugin.backend.value != "NO":
        raise UserError("auto_compile and torch_compile=True exclude each other; remove one")


@contextmanager
def weighed(trainer: Any, folder: Path, resume: bool) -> Iterator[None]:
    """Compile the steps of a phase from where it pays, for as long as the phase trains."""
    if not trainer.auto_compile:
        yield
        return
    trainer.compiling = Compiling(trainer, folder, resume)
    try:
        yield
        trainer.compiling.finish()
    finally:
        trainer.compiling.drop()


def facts(trainer: Any) -> dict[str, Any]:
    """Return what a phase chose for its report; nothing where no steps were to be weighed."""
    choice = trainer.compiling and trainer.compiling.choice
    return (
        {key: value for key, value in asdict(choice).items() if key != "shapes"} if choice else {}
    )


class Compiling:
    """What one phase knows of its steps' time, what it chose, and the network compiled.

    The choice is made once, between two steps, by all processes together, and written into the
    phase's folder: an interrupted phase goes on with it. Only whole batches run compiled, as any
    other shape would be compiled again. Everything that a measurement touches is put back.
    """

    def __init__(self, trainer: Any, folder: Path, resume: bool) -> None:
        self.trainer, self.note = trainer, folder / NOTE
        self.choice = self._remembered(resume)
        self.compiled: nn.Module | None = None
        self.shapes: dict[str, list[int]] = {}  # of the first batch, which is a whole one
        self.timed: list[float] = []
        self.batches, self.last = 0, -1

    def step(self, run: Run, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return what `run` gives of a network, or of it compiled where that was chosen."""
        at, shapes = self.trainer.state.global_step, _shapes(batch)
        begins, self.last = at != self.last, at
        if self.choice is None and begins:
            self._choose(run, model, shapes)
        choice = self.choice
        if choice is None:
            return self._timed(run, model, shapes)
        if not choice.compiled or at < choice.step or shapes != choice.shapes:
            return run(model)
        if self.compiled is None and not self._taken_up(run, model):
            return run(model)
        return run(self.compiled)

    def finish(self) -> None:
        """Say so where the phase ended before it chose."""
        if self.choice is None:
            self._settle(False, "its whole batches were too few to time")

    def drop(self) -> None:
        """Let go of what was compiled, which holds for what trains in this phase alone."""
        if self.compiled is not None:
            self.compiled = None
            torch._dynamo.reset()

    # --- the choice ---------------------------------------------------------------------------

    def _remembered(self, resume: bool) -> Choice | None:
        """Return what was chosen before the phase was interrupted; a phase begun anew forgets."""
        trainer, found = self.trainer, None
        if not trainer.watch.saves:
            return None
        if trainer.processes.main:
            if not resume:
                self.note.unlink(missing_ok=True)
            if self.note.is_file():
                found = json.loads(self.note.read_text(encoding="utf-8"))
        found = trainer.processes.all(found)[0]
        return Choice(**found) if found else None

    def _choose(self, run: Run, model: nn.Module, shapes: dict[str, list[int]]) -> None:
        """Choose, if it is time to; all processes call this together."""
        trainer = self.trainer
        steps = trainer.state.max_steps - self.last
        if why := self._ruled_out():
            return self._settle(False, why)
        ready = len(self.timed) >= STEPS and shapes == self.shapes
        everyone = trainer.processes.all(statistics.median(self.timed) if ready else None)
        if None in everyone:
            return None
        plain = max(everyone) * trainer.args.gradient_accumulation_steps
        on_cpu = trainer.args.device.type == "cpu"
        if why := not_worth(steps, plain, layers(model), on_cpu):
            return self._settle(False, why, plain_step=plain)
        if on_cpu and not compiler():
            return self._settle(False, f"compiling {NO_COMPILER}", failed=True, plain_step=plain)
        tried = self._tried(run, model)
        if isinstance(tried, str):
            return self._settle(False, tried, failed=True, plain_step=plain)
        times = tried["plain_step"], tried["compiled_step"], tried["compiling"]
        return self._settle(*judged(steps, *times), **tried)

    def _ruled_out(self) -> str | None:
        """Return why a phase's steps are not compiled whatever they take."""
        if self.trainer.shards:
            return "its parameters are sharded (FSDP)"
        if self.trainer._replay is not None:
            return "it trains on cached features, and compiling would trace the whole network"
        if (steps := self.trainer.state.max_steps) <= WARM + STEPS:
            return f"{steps} steps are too few to time"
        return None

    def _settle(self, compiled: bool, why: str, failed: bool = False, **seconds: float) -> None:
        """Keep a choice, tell it, and write it down."""
        trainer, shapes = self.trainer, self.shapes if compiled else {}
        self.choice = Choice(compiled, why, max(self.last, 0), seconds, shapes)
        if not compiled:
            self.drop()
        logger.log(
            logging.WARNING if failed else logging.INFO,
            "phase %d %s: %s",
            trainer.phase.index,
            trainer.phase.name,
            self.choice.line,
        )
        if trainer.watch.saves and trainer.processes.main:
            write_text(self.note, json.dumps(asdict(self.choice), indent=1) + "\n")

    # --- measuring ----------------------------------------------------------------------------

    def _timed(self, run: Run, model: nn.Module, shapes: dict[str, list[int]]) -> torch.Tensor:
        """Return what `run` gives of a network, and note the time of a whole batch."""
        self.shapes = self.shapes or shapes
        self.batches += 1
        if self.batches <= WARM or shapes != self.shapes or len(self.timed) == STEPS:
            return run(model)
        began = now(self.trainer.args.device)
        result = run(model)
        self.timed.append(now(self.trainer.args.device) - began)
        return result

    def _tried(self, run: Run, model: nn.Module) -> dict[str, float] | str:
        """Return seconds of compiling and of a step, plain and compiled, or why it failed.

        Both kinds in turns: what else a machine does weighs on both. The slowest process counts.
        """
        trainer = self.trainer
        with _untouched(model, trainer.args.device):
            found = self._compile(run, model)
            failed = [each for each in trainer.processes.all(found) if isinstance(each, str)]
            if failed:
                return failed[0]
            run(self.compiled)
            pair = (model, self.compiled)
            turns = [[self._seconds(run, network) for network in pair] for _ in range(STEPS)]
        batches = trainer.args.gradient_accumulation_steps
        plain, compiled = (batches * statistics.median(kind) for kind in zip(*turns, strict=True))
        mine = {"plain_step": plain, "compiled_step": compiled, "compiling": found}
        everyone = trainer.processes.all(mine)
        return {name: max(each[name] for each in everyone) for name in mine}

    def _taken_up(self, run: Run, model: nn.Module) -> bool:
        """Return whether what was chosen before the phase was interrupted compiles here, too."""
        with _untouched(model, self.trainer.args.device):
            found = self._compile(run, model)
        if isinstance(found, str):
            self._settle(False, found, failed=True)
        return not isinstance(found, str)

    def _compile(self, run: Run, model: nn.Module) -> float | str:
        """Compile a network by running it; return the seconds that it took, or why it failed.

        No process waits for another's gradients here: in that one it may have failed.
        """
        self.compiled = compiled(model)
        try:
            with self.trainer.accelerator.no_sync(model), _hushed():
                return self._seconds(run, self.compiled)
        except RuntimeError as error:  # torch's own are, whether of a compiler or of the device
            said = str(error).partition("Set TORCH")[0]  # advice for those who develop it
            lines = [line.strip() for line in said.splitlines() if line.strip()]
            return f"compiling failed: {' '.join(lines[:2])[:REASON]}"

    def _seconds(self, run: Run, network: nn.Module) -> float:
        device = self.trainer.args.device
        network.zero_grad(set_to_none=True)  # as before a step
        began = now(device)
        run(network)
        return now(device) - began


def compiled(model: nn.Module) -> nn.Module:
    """Return a network that torch.compile makes when it runs; its dropout is the plain one's."""
    return torch.compile(model, options={"fallback_random": True})


def layers(model: nn.Module) -> int:
    """Return how many modules of a network hold parameters of their own."""
    return sum(bool(module._parameters) for module in model.modules())


def _shapes(batch: Mapping[str, Any]) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in batch.items() if hasattr(value, "shape")}


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep torch from telling a failure that is told in one line."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch._dynamo", "torch._inductor")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


@contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Leave statistics, gradients and random numbers as they are, whatever runs until the end."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    depth = sys.getrecursionlimit()  # which inductor raises
    try:
        model.zero_grad(set_to_none=True)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        sys.setrecursionlimit(depth)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
