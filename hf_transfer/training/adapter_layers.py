"""Adapters put beside a network's layers and merged into them again: by peft, and only here."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_transfer.backbones.access import bare_names
from hf_transfer.backbones.blueprint import Backbone
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import written_folder
from hf_transfer.planning.adapters import Adapters, parameters_of
from hf_transfer.planning.phase import Phase
from hf_transfer.training.freezing import FreezingError


def inject(model: nn.Module, backbone: Backbone, phase: Phase, seed: int) -> Backbone:
    """Put a phase's adapters beside the layers, in place, and no others; return what is known of
    the model with them.

    Their values are a function of `seed`; the logits are what they were.
    """
    adapters = phase.adapters
    remove(model)
    if adapters is None:
        return backbone
    from peft import inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(_config(adapters, backbone.prefix), model)
    for layer in _layers(model).values():
        layer.train(layer.get_base_layer().training)
    shapes = {name: tuple(p.shape) for name, p in bare_names(model, backbone.prefix).items()}
    for name, shape in parameters_of(adapters, backbone.layout).items():
        if shapes.get(name) != shape:
            raise FreezingError(f"{name} was planned as {shape}, and peft made {shapes.get(name)}")
    return replace(backbone, groups=phase.network)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add what adapters do to the weights of their layers, in place, and take them away."""
    for layer in _layers(model).values():
        layer.merge()
    remove(model)


def remove(model: nn.Module) -> None:
    """Take all adapters away: the layers are as they were before, or as merged."""
    for path, layer in _layers(model).items():
        model.set_submodule(path, layer.get_base_layer())
    vars(model).pop("peft_config", None)


def keep(model: nn.Module, backbone: Backbone, phase: Phase, folder: Path) -> None:
    """Write adapters and head as peft reads them, for the backbone as its library loads it.

    The folder appears whole or not at all, in place of one that we wrote. Raises UserError.
    """
    from safetensors.torch import save_file

    adapters, prefix = phase.adapters, backbone.prefix
    assert adapters is not None  # or there is nothing to keep
    own = set(parameters_of(adapters, backbone.layout))
    named = bare_names(model, prefix)
    trained = [name for name in phase.parameters if name not in own]
    modules = _whole_modules(model, prefix, {*trained, *backbone.layout.head})
    state = {f"{prefix}{name.replace('.default', '')}": named[name] for name in sorted(own)}
    plain = model.state_dict()
    state |= {n: plain[n] for path in modules for n in plain if n.startswith(f"{path}.")}
    state = {f"base_model.model.{n}": t.detach().cpu().contiguous() for n, t in state.items()}
    config = _config(adapters, prefix, backbone.id, sorted(modules))
    with written_folder(folder, "adapter") as aside:
        config.save_pretrained(str(aside))
        save_file(state, aside / "adapter_model.safetensors", metadata={"format": "pt"})


def _whole_modules(model: nn.Module, prefix: str, names: Collection[str]) -> set[str]:
    """Return the modules that hold these parameters, with all that peft takes for the same."""
    found = {f"{prefix}{name}".rpartition(".")[0] for name in names}
    if "" in found:
        raise UserError("keep_adapters: the head is no module of its own; merge the adapters")
    return {path for path, _ in model.named_modules() if path.endswith(tuple(found))}


def _layers(model: nn.Module) -> dict[str, Any]:
    if not hasattr(model, "peft_config"):  # importing peft takes a second
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {path: m for path, m in model.named_modules() if isinstance(m, BaseTunerLayer)}


def _config(
    adapters: Adapters, prefix: str, base: str | None = None, modules: list[str] | None = None
) -> Any:
    """Return peft's config: layers by a pattern, since a list of names would match endings too."""
    import peft

    paths = "|".join(re.escape(prefix + path) for path in adapters.layers)
    common: dict[str, Any] = {
        "r": adapters.r,
        "target_modules": f"(?:{paths})",
        "base_model_name_or_path": base,
        "modules_to_save": modules,
    }
    if adapters.kind in ("lora", "dora"):
        return peft.LoraConfig(
            **common,
            lora_alpha=adapters.alpha,
            lora_dropout=adapters.dropout,
            use_dora=adapters.kind == "dora",
        )
    kind = peft.LoHaConfig if adapters.kind == "loha" else peft.LoKrConfig
    return kind(**common, alpha=adapters.alpha, rank_dropout=adapters.dropout)
