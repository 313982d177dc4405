"""A network's parts by their own names, and its answer as logits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

BESIDE = re.compile(r"\.base_layer\.(weight|bias)$")  # peft's word for a layer with adapters


def bare_name(name: str, prefix: str) -> str:
    """Return a name as the bare network has it, without the prefixes of wrappers and loaders and
    whether or not adapters stand beside its layer."""
    bare = name.removeprefix("module.").removeprefix("_orig_mod.").removeprefix(prefix)
    return BESIDE.sub(r".\1", bare)


def bare_names(model: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    """Return the parameters by the names that the bare network has."""
    return {bare_name(name, prefix): parameter for name, parameter in model.named_parameters()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Hold the model in evaluation mode, then give every module its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def logits_of(outputs: Any) -> torch.Tensor:
    """Return the logits (B, C) in a model's output: the tensor itself, or what is called so."""
    return outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]
