"""What a phase costs: operations, seconds and memory, estimated from multiply-adds."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hf_transfer.base.threads import ASKED
from hf_transfer.planning.adapters import is_adapter
from hf_transfer.planning.frozen_prefix import view_count
from hf_transfer.planning.phase import Phase
from hf_transfer.recipe.specs import PhaseSpec

# How often a large array is passed through, read and written. Fitted to processor seconds of steps
# on one core: ResNet-18 and -50, ViT-Ti and -S, ConvNeXt-T, EfficientNet-Lite0 at 224 px;
# ResNet-10-T and -26-D, EfficientNet-B0 and -Lite0, ConvNeXt-A at 64 to 128 px. All of these come
# to within 17%; MobileNetV3-S takes half as long again, VGG-16 twice as long.
OUTPUT_PASSES = 11  # for each number that a layer gives: written, normalised, activated, read
WARP_PASSES = 19  # for each number of a picture that is cropped or turned at random
COLOR_PASSES = 17  # for each of one whose colours are varied
ARRAY = 1_000_000  # numbers in an array too large for the caches nearest to a core
FINE_SECONDS = 1e-5  # resolution of a clock that can time a millisecond's work
STEP_SECONDS = 0.003  # of a step with next to no arithmetic
PHASE_SECONDS = 1.5  # to prepare and to check the phase
# A layer's output is kept for the backward pass with about two more of its size: after the norm,
# after the activation.
KEPT_OUTPUTS = 3
BYTES = {"fp32": 4, "auto": 4, "bf16": 2, "fp16": 2}  # of an activation
# Bytes of optimizer state for each scalar that trains.
STATE_BYTES = {"adamw": 8, "sgd": 0, "adagrad": 4, "rmsprop": 4, "adafactor": 0}


@dataclass(frozen=True)
class Speed:
    """What a machine does in a second, all its cores together, with float32 numbers."""

    products: float  # operations of matrix products: multiplications and additions
    numbers: float  # numbers of a large array that are read, multiplied and written


def measure_speed() -> Speed:
    """Return the speed of this machine.

    One core's, by products small enough to stay on it, times the cores that this process may use,
    or the threads that OMP_NUM_THREADS asks for where they are fewer: several threads wait for each
    other on a busy machine, and would say nothing of a quiet one. Nor does the time in which other
    processes have the core, so it is not counted where the clock of this one is fine enough.
    """
    import numpy as np

    side, count = 64, 200
    a = np.ones((count, side, side), dtype=np.float32)
    product = np.empty_like(a)
    row = np.ones(ARRAY, dtype=np.float32)
    scaled = np.empty_like(row)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    asked = [os.environ[name] for name in ASKED if os.environ.get(name, "").isdigit()]
    cores = min([cores, *(max(1, int(count)) for count in asked)])
    return Speed(
        products=cores * 2 * side**3 * count / _best(lambda: np.matmul(a, a, out=product)),
        numbers=cores * ARRAY / _best(lambda: np.multiply(row, 1.5, out=scaled)),
    )


def _best(work: Callable[[], object]) -> float:
    """Return the least time that some work takes, in seconds."""
    fine = time.get_clock_info("process_time").resolution < FINE_SECONDS
    clock, best = time.process_time if fine else time.perf_counter, math.inf
    for _ in range(10):
        started = clock()
        work()
        best = min(best, clock() - started)
    return best


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
        """Return the multiplications and additions of the phase, and `per_output` more for each
        number in a layer's output."""
        forward, backward = self._pass(per_output)
        prefix = 0.0 if self.live else self._prefix(per_output)
        rounds = math.ceil(self.seen / self.train) if self.train else 0
        found = self.views * self.seen * (forward + backward) + rounds * self.validation * forward
        found += (self.train * view_count(self.phase) + self.validation) * prefix
        return found + self._reestimated() * (forward + prefix)

    def seconds(self, speed: Speed, steps: int, share: float = 1.0) -> float:
        """Return the time of the phase at that speed; `share` is what its precision takes of the
        time of float32."""
        each = speed.products / speed.numbers  # operations in the time of one number
        effort = share * self.operations(OUTPUT_PASSES * each) + self._varied() * each
        return effort / speed.products + STEP_SECONDS * steps + PHASE_SECONDS

    def _varied(self) -> float:
        """Return how many numbers are passed through to vary training images."""
        spec, image = self.phase.spec, self.phase.layout.image
        how = [spec.augment] * (self.views if self.live else 0)
        if spec.pseudo:
            how[1 + spec.pseudo.per_image :] = [spec.pseudo.augment] * spec.pseudo.per_image
        numbers = int(image.get("channels", 3)) * int(image.get("size", 224)) ** 2
        each = sum(
            WARP_PASSES * bool(one.crop or one.rotate) + COLOR_PASSES * bool(one.color)
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
            yield name, count + per_output / 2 * count / math.prod(shape[1:])


def weight_bytes(phase: Phase) -> int:
    """Return the bytes of weights, and of gradients, optimizer and best weights of what trains."""
    spec, sizes = phase.spec, phase.layout.sizes
    trained = sum(sizes[name] for name in phase.parameters)
    best = 4 * (spec.best != "last")
    return 4 * sum(sizes.values()) + (4 + _state_bytes(spec) + best) * trained


def _state_bytes(spec: PhaseSpec) -> int:
    return STATE_BYTES.get(spec.optimizer, 8) + 4 * (spec.momentum is not None)
