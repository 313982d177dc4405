"""What every room asks of a network, whoever wraps it: parameters by their own names, its logits,
its evaluation mode."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

ADAPTED = re.compile(r"\.base_layer\.(weight|bias)$")  # in peft's layer, the one with adapters


def bare_name(name: str, prefix: str) -> str:
    """Return a name as the bare network has it: without `prefix`, the prefixes of wrappers
    (`module.`, `_orig_mod.`) and peft's word for a layer that has adapters."""
    bare = name.removeprefix("module.").removeprefix("_orig_mod.").removeprefix(prefix)
    return ADAPTED.sub(r".\1", bare)


def bare_names(model: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    """Return the parameters by the names that the bare network has."""
    return {bare_name(name, prefix): parameter for name, parameter in model.named_parameters()}


def unused(model: nn.Module, inputs: Collection[str]) -> set[str]:
    """Return the names of inputs that a model's forward does not list: a path, an id."""
    named = inspect.signature(type(model).forward).parameters.keys()
    listed = "pixel_values" in named  # not one that takes **anything
    return {*inputs} - {*named, "labels", "features"} if listed else set()


def logits_of(outputs: Any) -> torch.Tensor:
    """Return the logits (B, C) in a model's output: the output itself, its entry "logits", or the
    first of several values."""
    if isinstance(outputs, tuple | list):
        return outputs[0]
    return outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep the model in evaluation mode, then restore every module's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def same_random(model: nn.Module) -> Iterator[None]:
    """Give the random generators of Python, numpy and torch, on the model's devices, too, back as
    they were."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    generators = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
            yield
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])
