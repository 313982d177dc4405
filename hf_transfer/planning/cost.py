"""What a phase costs: operations, seconds, bytes of memory, of features and of messages."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass

from hf_transfer.planning.adapters import is_adapter
from hf_transfer.planning.layout import Layout
from hf_transfer.recipe.specs import PhaseSpec

# Where time goes, fitted to processor seconds on one core: steps of ResNet-50, VGG-16, ViT-S and
# ConvNeXt-T at 224 px, whole phases of ResNet-10-T, ViT-Ti, ConvNeXt-A and MobileNetV3-S at 96 px.
EFFICIENCY = 0.8  # share of this machine's matrix rate that matrix products reach
OUTPUT_OPERATIONS = 320  # for each number that a layer gives: written, normalised, activated, read
STEP_SECONDS = 0.003  # of a step with next to no arithmetic
PHASE_SECONDS = 1.5  # to make ready and to prove
# A layer's output is kept for the backward pass with about two more of its size: after the norm,
# after the activation.
KEPT_OUTPUTS = 3
BYTES = {"fp32": 4, "auto": 4, "bf16": 2, "fp16": 2}  # of an activation
# Bytes of optimizer state for each scalar that trains.
STATE_BYTES = {"adamw": 8, "sgd": 0, "adagrad": 4, "rmsprop": 4, "adafactor": 0}


def measure_speed() -> float:
    """Return this machine's rate of float32 matrix multiplication, in operations per second.

    One core's, by products small enough to stay on it, times the cores that this process may use:
    several threads wait for each other on a busy machine, and would say nothing of a quiet one.
    """
    import numpy as np

    side, count = 64, 200
    a = np.ones((count, side, side), dtype=np.float32)
    product = np.empty_like(a)
    best = math.inf
    for _ in range(10):
        started = time.perf_counter()
        np.matmul(a, a, out=product)
        best = min(best, time.perf_counter() - started)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return cores * 2 * side**3 * count / best


@dataclass(frozen=True)
class _Cost:
    """What running and training a network costs, from its multiply-adds."""

    layout: Layout
    activation_bytes: int
    per_output: float = 0.0  # operations that a number in a layer's output counts as

    def operations(self, names: set[str] | None, backward: set[str]) -> tuple[float, float]:
        """Return operations an image, forward and backward, through the named layers (None: all).

        Backward: the gradient by the input for what lies above the first parameter that trains,
        and the gradient by the weight for what trains.
        """
        forward = gradients = 0.0
        reached = False
        for name, macs in self._macs():
            if names is not None and name not in names:
                continue
            forward += 2 * macs
            gradients += 2 * macs * (reached + (name in backward))
            reached = reached or name in backward
        return forward, gradients

    def activations(self, names: set[str] | None, backward: set[str]) -> float:
        """Return bytes an image of what forward keeps for the backward pass, roughly."""
        shapes = dict(self.layout.parameters)
        outputs = 0.0
        reached = False
        for name, macs in self._macs():
            reached = reached or name in backward
            if is_adapter(name):  # what it takes is kept anyway, what it gives is only added
                continue
            if reached and len(shapes[name]) > 1 and (names is None or name in names):
                outputs += macs / math.prod(shapes[name][1:])
        return KEPT_OUTPUTS * outputs * self.activation_bytes

    def _macs(self) -> list[tuple[str, float]]:
        macs = self.layout.macs or (0,) * len(self.layout.parameters)
        found = []
        for (name, shape), count in zip(self.layout.parameters, macs, strict=True):
            outputs = count / math.prod(shape[1:])
            found.append((name, count + self.per_output / 2 * outputs))
        return found


def _held(spec: PhaseSpec, total: int, trained: int) -> int:
    """Return the bytes of weights, and of gradients, optimizer and best weights of what trains."""
    state = STATE_BYTES.get(spec.optimizer, 8) + 4 * (spec.momentum is not None)
    best = 4 * (spec.best != "last")
    return 4 * total + (4 + state + best) * trained
