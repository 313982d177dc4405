"""Sharded parameters: FSDP2 as accelerate sets it up, for as long as a phase trains.

Between phases the model is whole and plain, the same in all processes: what freezes, proves, saves
and publishes it knows nothing of shards. While a phase trains, its place is taken by a copy whose
parameters are sharded anew, so that what trains is fixed when accelerate sees it.
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
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor

from hf_transfer.base import launch
from hf_transfer.base.errors import UserError
from hf_transfer.planning.groups import LayerGroups

logger = logging.getLogger(__name__)

NAMED = "transformer_cls_names_to_wrap"  # where a user says which classes are sharded on their own


def take_over(trainer: Any) -> bool:
    """Return whether a Trainer's phases are to be sharded; Trainer's own ways with it are set off.

    Raises UserError for a configuration that is not supported.
    """
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if trainer.is_deepspeed_enabled:
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
    asked = {
        "offload_params": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "activation_checkpointing": plugin.activation_checkpointing,
    }
    for name, instead in launch.NOT_SHARDED.items():
        if asked.get(name):
            raise UserError(f"fsdp_{name} is not supported; {instead}")
    if trainer.args.torch_compile:
        raise UserError("compile: true is not supported with FSDP; remove it")
    # Trainer's FSDP would save shards, shard for an evaluation, and load after it has sharded. As
    # it is, it prepares the model by accelerate and knows no more, as with DDP.
    trainer.is_fsdp_enabled = False
    plugin.mixed_precision_policy = None  # autocast, as everywhere else
    trainer.model.to(trainer.args.device)
    own = trainer.args.fsdp_plugin_args or {}
    named = own.get(NAMED) or os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP")
    policy = getattr(plugin.auto_wrap_policy, "func", plugin.auto_wrap_policy)
    if policy is transformer_auto_wrap_policy and not named:
        groups, prefix = trainer.backbone.groups, trainer.backbone.prefix
        plugin.auto_wrap_policy = policy  # one that has the classes of an earlier network has gone
        plugin.transformer_cls_names_to_wrap = sorted(unit_classes(trainer.model, prefix, groups))
    logger.info(
        "parameters are sharded (FSDP2) in units of: %s",
        ", ".join(plugin.transformer_cls_names_to_wrap or ()) or "the whole network",
    )
    return True


def unit_classes(model: nn.Module, prefix: str, groups: LayerGroups) -> set[str]:
    """Return the names of the classes of which each module is gathered on its own: blocks.

    A block is the outermost module of a group, behind the stem, that is no mere list or sequence
    and has at least two parts with matrices. Empty where the network has none, as VGG.
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


@contextmanager
def sharded(trainer: Any) -> Iterator[None]:
    """Train a sharded copy of a Trainer's model, where that is asked for; then the model is what
    the copy came to, in every process."""
    if not trainer.shards:
        yield
        return
    plain, still, device = trainer.model, trainer._still, trainer.args.device
    plain.to("cpu")  # it waits there, and the copy goes to the device part by part
    trainer.model = trainer.model_wrapped = copied(plain)
    trainer._still = [trainer.model.get_submodule(name) for name in trainer._still_names]
    # Only autocast: what FSDP2 needs is prepared with the optimizer.
    trainer.accelerator.prepare_model(trainer.model, device_placement=False, evaluation_mode=True)
    try:
        yield
        take_back(trainer.model, plain)
        if trainer._best is not None:
            trainer._best = whole(trainer._best)
    finally:
        trainer.model = trainer.model_wrapped = trainer.callback_handler.model = plain
        trainer._still = still
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
    copied.get_input_embeddings = _none  # type: ignore[assignment]
    return copied


def _none() -> None:
    return None


def gather_none(model: nn.Module) -> None:
    """Have every parameter sharded: an evaluation leaves some gathered, as plain tensors."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def one_whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with all its parts, gathered where it is sharded; differentiable."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(tensors: Mapping[str, torch.Tensor], keep: bool = True) -> dict[str, torch.Tensor]:
    """Return tensors with all their parts, on the CPU where they were sharded.

    All processes call this together; those without `keep` help, and get nothing of what is sharded.
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


def save_optimizer(trainer: Any, folder: Path) -> None:
    """Write this process's part of the optimizer's state, and the first one the schedule's."""
    saved = trainer.optimizer.state_dict()
    saved["state"] = {
        i: {key: _part(value) for key, value in entries.items()}
        for i, entries in saved["state"].items()
    }
    torch.save(saved, folder / f"optimizer_{trainer.processes.rank}.pt")
    if trainer.processes.main:
        torch.save(trainer.lr_scheduler.state_dict(), folder / "scheduler.pt")


def load_optimizer(trainer: Any, folder: Path) -> None:
    """Read back what `save_optimizer` wrote, in the same number of processes."""
    path = folder / f"optimizer_{trainer.processes.rank}.pt"
    saved = torch.load(path, map_location="cpu", weights_only=True)
    like = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    saved["state"] = {
        i: {key: _joined(value, like[i]) for key, value in entries.items()}
        for i, entries in saved["state"].items()
    }
    trainer.optimizer.load_state_dict(saved)
    schedule = torch.load(folder / "scheduler.pt", map_location="cpu", weights_only=True)
    trainer.lr_scheduler.load_state_dict(schedule)


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
