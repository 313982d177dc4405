"""Sharded parameters (experimental): FSDP2 as accelerate sets it up, while a phase trains.

Between phases the model is whole, plain and the same in all processes: the code that freezes,
proves, saves and publishes it knows nothing about shards. While a phase trains, a copy with newly
sharded parameters takes its place, so that what trains is fixed when accelerate sees it.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments

from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.base import launch
from hf_transfer.base.errors import UserError
from hf_transfer.base.processes import Processes
from hf_transfer.planning.groups import LayerGroups
from hf_transfer.training.phase_state import Part, PhaseState

logger = logging.getLogger(__name__)

NAMED = "transformer_cls_names_to_wrap"  # where a user says which classes are sharded on their own


def asked(
    accelerator: Accelerator,
    deepspeed: bool,
    args: TrainingArguments,
    model: nn.Module,
    backbone: Backbone,
) -> bool:
    """Return whether phases are to be sharded; accelerate is then told in which units.

    Raises UserError for a configuration that is not supported.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if deepspeed:
        raise UserError(f"DeepSpeed {launch.NO_DEEPSPEED}")
    if plugin is None:
        if launch.shards():
            raise UserError(
                "FSDP was asked for, and accelerate shards among accelerators only; use "
                "accelerate/cpu (hf-transfer recipes)"
            )
        return False
    if plugin.fsdp_version != 2:
        raise UserError(f"FSDP version {plugin.fsdp_version} {launch.NO_FSDP1}")
    wanted = {
        "offload_params": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "activation_checkpointing": plugin.activation_checkpointing,
    }
    for name, instead in launch.NOT_SHARDED.items():
        if wanted.get(name):
            raise UserError(f"fsdp_{name} is not supported; {instead}")
    if args.torch_compile:
        raise UserError("compile: true is not supported with FSDP; remove it")
    plugin.mixed_precision_policy = None  # autocast, as everywhere else
    model.to(args.device)
    own = args.fsdp_plugin_args or {}
    named = own.get(NAMED) or os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP")
    policy = getattr(plugin.auto_wrap_policy, "func", plugin.auto_wrap_policy)
    if policy is transformer_auto_wrap_policy and not named:
        plugin.auto_wrap_policy = policy  # one that has the classes of an earlier network has gone
        classes = unit_classes(model, backbone.prefix, backbone.groups)
        plugin.transformer_cls_names_to_wrap = sorted(classes)
    logger.warning(
        "sharding parameters (FSDP2) is experimental; units: %s",
        ", ".join(plugin.transformer_cls_names_to_wrap or ()) or "the whole network",
    )
    return True


def unit_classes(model: nn.Module, prefix: str, groups: LayerGroups) -> set[str]:
    """Return the names of the classes whose modules are gathered one by one: blocks.

    A block is the outermost module of a group, behind the stem, that is not just a list or sequence
    and has at least two parts with matrices. Empty if the network has none, like VGG.
    """

    def blocks(module: nn.Module) -> Iterator[str]:
        parts = [c for c in module.children() if any(p.ndim > 1 for p in c.parameters())]
        if len(parts) > 1 and not type(module).__module__.startswith("torch.nn."):
            yield type(module).__name__
        else:
            for part in parts:
                yield from blocks(part)

    return {
        name
        for group in groups.groups
        if group.name not in ("stem", "head")
        for path in group.modules
        for name in blocks(model.get_submodule(prefix + path))
    }


class Sharding(Part):
    """A sharded copy of the model trains in its place; experimental."""

    def __init__(self, asked: bool) -> None:
        self.asked = asked

    @contextmanager
    def during(self, trainer: Trainer, state: PhaseState) -> Iterator[None]:
        """Train the copy, if sharding is on; afterwards the model has the copy's weights, in every
        process."""
        if not self.asked:
            yield
            return
        plain, still, device = trainer.model, state.still_modules, state.args.device
        plain.to("cpu")  # it waits there, and the copy goes to the device part by part
        model = trainer.model = trainer.model_wrapped = copied(plain)
        state.still_modules = [model.get_submodule(name) for name in state.still]
        # Only autocast: what FSDP2 needs is prepared with the optimizer.
        trainer.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        try:
            yield
            take_back(trainer.model, plain)
            if state.best is not None:
                state.best = whole(state.best)
        finally:
            trainer.model = trainer.model_wrapped = trainer.callback_handler.model = plain
            state.still_modules = still
            trainer.optimizer = trainer.callback_handler.optimizer = None
            trainer.accelerator.free_memory()
            plain.to(device)


def copied(model: nn.Module) -> nn.Module:
    """Return a copy that shares nothing with a model.

    Raises UserError where a module's forward is a function put on it, which would run the original.
    """
    for path, module in model.named_modules():
        if isinstance(module.__dict__.get("forward"), FunctionType):
            raise UserError(
                f"FSDP: {path or 'the model'} has a function in the place of its forward, which "
                "cannot be copied; make it a method of its class"
            )
    copied = copy.deepcopy(model)
    # accelerate would shard them on their own, and transformers knows none of many image models.
    copied.get_input_embeddings = _none
    return copied


def _none() -> None:
    return None


def gather_none(model: nn.Module) -> None:
    """Shard every parameter: an evaluation leaves some gathered, as plain tensors."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def one_whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with all its parts, gathered where it is sharded; differentiable."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(tensors: Mapping[str, torch.Tensor], keep: bool = True) -> dict[str, torch.Tensor]:
    """Return tensors with all their parts, on the CPU where they were sharded.

    All processes call this together; those without `keep` take part and get nothing that is
    sharded.
    """
    found = {}
    for name, tensor in tensors.items():
        value = one_whole(tensor)
        if keep or value is tensor:
            found[name] = value if value is tensor else value.cpu()
    return found


@torch.no_grad()
def take_back(model: nn.Module, plain: nn.Module) -> None:
    """Write the values of a sharded model into the plain one that it is a copy of."""
    gather_none(model)
    ours = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        ours[name].copy_(one_whole(tensor))


# --- the optimizer's state -------------------------------------------------------------------


def save_optimizer(optimizer: Any, scheduler: Any, folder: Path, here: Processes) -> None:
    """Write this process's part of the optimizer's state, and the first one the schedule's."""
    saved = optimizer.state_dict()
    saved["state"] = {
        i: {key: _part(value) for key, value in entries.items()}
        for i, entries in saved["state"].items()
    }
    torch.save(saved, folder / f"optimizer_{here.rank}.pt")
    if here.main:
        torch.save(scheduler.state_dict(), folder / "scheduler.pt")


def load_optimizer(optimizer: Any, scheduler: Any, folder: Path, here: Processes) -> None:
    """Read back what `save_optimizer` wrote, in the same number of processes."""
    path = folder / f"optimizer_{here.rank}.pt"
    saved = torch.load(path, map_location="cpu", weights_only=True)
    like = [p for group in optimizer.param_groups for p in group["params"]]
    saved["state"] = {
        i: {key: _joined(value, like[i]) for key, value in entries.items()}
        for i, entries in saved["state"].items()
    }
    optimizer.load_state_dict(saved)
    schedule = torch.load(folder / "scheduler.pt", map_location="cpu", weights_only=True)
    scheduler.load_state_dict(schedule)


def _part(value: Any) -> Any:
    return {"part": value.to_local()} if isinstance(value, DTensor) else value


def _joined(value: Any, like: DTensor) -> Any:
    """Return a saved value as one part of a state that is sharded as its parameter is."""
    if not isinstance(value, dict):
        return value
    return DTensor.from_local(
        value["part"].to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
