"""What a phase costs: operations, seconds and memory, estimated from multiply-adds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from hf_transfer.base.threads import ASKED
from hf_transfer.planning.adapters import is_adapter
from hf_transfer.planning.frozen_prefix import view_count
from hf_transfer.planning.phase import Phase
from hf_transfer.recipe.specs import PhaseSpec

# Where time goes, fitted to processor seconds on one core: steps of ResNet-50, VGG-16, ViT-S,
# ConvNeXt-T and EfficientNet-Lite0 at 224 px, and of ResNet-10-T, ConvNeXt-A, MobileNetV3-S and
# EfficientNet-Lite0 at 64 and 96 px. All but VGG-16 and MobileNetV3-S come to within 15%.
EFFICIENCY = 0.95  # share of this machine's matrix rate that convolutions reach
LINEAR = 1.4  # time of linear layers, with attention and GELU, beside as many convolved numbers
OUTPUT_OPERATIONS = 320  # for each number that a layer gives: written, normalised, activated, read
WARP_OPERATIONS = 950  # for each number of a picture that is cropped or turned at random
COLOR_OPERATIONS = 650  # for each of one whose colours are varied
FINE_SECONDS = 1e-5  # resolution of a clock that can time a millisecond's work
STEP_SECONDS = 0.003  # of a step with next to no arithmetic
PHASE_SECONDS = 1.5  # to prepare and to check the phase
# A layer's output is kept for the backward pass with about two more of its size: after the norm,
# after the activation.
KEPT_OUTPUTS = 3
BYTES = {"fp32": 4, "auto": 4, "bf16": 2, "fp16": 2}  # of an activation
# Bytes of optimizer state for each scalar that trains.
STATE_BYTES = {"adamw": 8, "sgd": 0, "adagrad": 4, "rmsprop": 4, "adafactor": 0}


def measure_speed() -> float:
    """Return this machine's rate of float32 matrix multiplication, in operations per second.

    One core's, by products small enough to stay on it, times the cores that this process may use,
    or the threads that OMP_NUM_THREADS asks for where they are fewer: several threads wait for each
    other on a busy machine, and would say nothing of a quiet one. Nor does the time in which other
    processes have the core, so it is not counted where the clock of this one is fine enough.
    """
    import numpy as np

    side, count = 64, 200
    a = np.ones((count, side, side), dtype=np.float32)
    product = np.empty_like(a)
    fine = time.get_clock_info("process_time").resolution < FINE_SECONDS
    clock, best = time.process_time if fine else time.perf_counter, math.inf
    for _ in range(10):
        started = clock()
        np.matmul(a, a, out=product)
        best = min(best, clock() - started)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    asked = [os.environ[name] for name in ASKED if os.environ.get(name, "").isdigit()]
    cores = min([cores, *(max(1, int(count)) for count in asked)])
    return cores * 2 * side**3 * count / best


@dataclass(frozen=True)
class Work:
    """What a phase computes: which part of its network, for how many images."""

    phase: Phase
    train: int  # images of the training set
    validation: int
    seen: int  # training images that pass in all epochs
    live: bool  # whether the frozen prefix runs in every epoch, not once for all
    views: int = 1  # pictures that are made of a training image each time

    def operations(self, per_output: float = 0.0) -> float:
        """Return the multiplications and additions of the phase.

        With `per_output` they are what takes as long: each number in a layer's output counts as so
        many more, and those of linear layers LINEAR times.
        """
        forward, backward = self._pass(per_output)
        prefix = 0.0 if self.live else self._prefix(per_output)
        rounds = math.ceil(self.seen / self.train) if self.train else 0
        found = self.views * self.seen * (forward + backward) + rounds * self.validation * forward
        found += (self.train * view_count(self.phase) + self.validation) * prefix
        return found + self._reestimated() * (forward + prefix)

    def seconds(self, speed: float, steps: int, share: float = 1.0) -> float:
        """Return the time of the phase on a machine of that matrix rate, in operations per second;
        `share` is what its precision takes of the time of float32."""
        effort = share * self.operations(OUTPUT_OPERATIONS) + self._varied()
        return effort / (speed * EFFICIENCY) + STEP_SECONDS * steps + PHASE_SECONDS

    def _varied(self) -> float:
        """Return the operations in which training images are varied."""
        spec, image = self.phase.spec, self.phase.layout.image
        how = [spec.augment] * (self.views if self.live else 0)
        if spec.pseudo:
            how[1 + spec.pseudo.per_image :] = [spec.pseudo.augment] * spec.pseudo.per_image
        numbers = int(image.get("channels", 3)) * int(image.get("size", 224)) ** 2
        each = sum(
            WARP_OPERATIONS * bool(one.crop or one.rotate) + COLOR_OPERATIONS * bool(one.color)
            for one in how
        )
        return float(self.seen * numbers * each)

    def memory_bytes(self, precision: str) -> int:
        """Return the memory that weights, training and a batch's activations take, roughly."""
        at_once = self.views * min(self.phase.spec.batch_size, max(self.train, 1))
        activations = at_once * self._kept_numbers() * BYTES[precision]
        return weight_bytes(self.phase) + int(activations)

    def _pass(self, per_output: float) -> tuple[float, float]:
        """Return the operations of one image, forward and backward, without a stored prefix.

        Backward: the gradient by the input for what lies above the first parameter that trains,
        and the gradient by the weight for what trains.
        """
        forward = gradients = 0.0
        trained, skipped = set(self.phase.parameters), self._skipped()
        reached = False
        for name, macs in self._macs(per_output):
            if name in skipped:
                continue
            forward += 2 * macs
            gradients += 2 * macs * (reached + (name in trained))
            reached = reached or name in trained
        return forward, gradients

    def _prefix(self, per_output: float) -> float:
        """Return the operations of one image in the frozen prefix."""
        skipped = self._skipped()
        return sum(2 * macs for name, macs in self._macs(per_output) if name in skipped)

    def _reestimated(self) -> int:
        """Return from how many images normalisation statistics are re-estimated."""
        images = self.phase.spec.reestimate_norms
        return self.train if images is True else min(images, self.train)

    def _kept_numbers(self) -> float:
        """Return the numbers of one image that forward keeps for the backward pass, roughly."""
        shapes, trained = dict(self.phase.layout.parameters), set(self.phase.parameters)
        skipped = self._skipped()
        outputs = 0.0
        reached = False
        for name, macs in self._macs():
            reached = reached or name in trained
            # What an adapter takes is kept anyway, and what it gives is only added.
            if reached and len(shapes[name]) > 1 and name not in skipped and not is_adapter(name):
                outputs += macs / math.prod(shapes[name][1:])
        return KEPT_OUTPUTS * outputs

    def _skipped(self) -> set[str]:
        """Return the parameters of what runs once for all epochs."""
        prefix = self.phase.network.groups[: 0 if self.live else self.phase.frozen_prefix]
        return {name for group in prefix for name in group.parameters}

    def _macs(self, per_output: float = 0.0) -> Iterator[tuple[str, float]]:
        layout = self.phase.layout
        macs = layout.macs or (0,) * len(layout.parameters)
        for (name, shape), count in zip(layout.parameters, macs, strict=True):
            each = LINEAR if per_output and len(shape) == 2 else 1.0
            yield name, each * count + per_output / 2 * count / math.prod(shape[1:])


def weight_bytes(phase: Phase) -> int:
    """Return the bytes of weights, and of gradients, optimizer and best weights of what trains."""
    spec, sizes = phase.spec, phase.layout.sizes
    trained = sum(sizes[name] for name in phase.parameters)
    best = 4 * (spec.best != "last")
    return 4 * sum(sizes.values()) + (4 + _state_bytes(spec) + best) * trained


def _state_bytes(spec: PhaseSpec) -> int:
    return STATE_BYTES.get(spec.optimizer, 8) + 4 * (spec.momentum is not None)
