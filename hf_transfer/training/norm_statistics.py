"""Running statistics of normalisation layers, re-estimated on the images to come.

Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv:2105.07576, section 3 (PreciseBN).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import Trainer

from hf_transfer.backbones.access import evaluating
from hf_transfer.base.processes import Processes
from hf_transfer.planning.phase import Phase
from hf_transfer.training import checks
from hf_transfer.training.machine.sync_batchnorm import mean_and_variance
from hf_transfer.training.phase_state import Part, PhaseState
from hf_transfer.training.proof import Fingerprints, fingerprint, prove

BATCH = 64  # images whose statistics are taken together
STATISTICS = ("running_mean", "running_var")


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that normalise by statistics of a batch in training and keep them."""
    batch = nn.modules.batchnorm._BatchNorm
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, batch) and module.running_mean is not None
    }


@contextmanager
def counted_once(model: nn.Module, twice: bool) -> Iterator[None]:
    """Let running statistics take each batch once, until the block ends, where forward runs
    `twice`: with gradient checkpointing its second time is within the backward pass."""
    kept: dict[nn.Module, list[torch.Tensor]] = {}

    def keep(layer: nn.Module, args: Any) -> None:
        if torch._C._current_graph_task_id() != -1:  # as torch.utils.checkpoint itself asks
            kept[layer] = [buffer.clone() for buffer in layer.buffers()]

    def put_back(layer: nn.Module, args: Any, output: Any) -> None:
        for buffer, before in zip(layer.buffers(), kept.pop(layer, ()), strict=False):
            buffer.copy_(before)

    with ExitStack() as stack:
        for layer in layers(model).values() if twice else ():
            stack.callback(layer.register_forward_pre_hook(keep).remove)
            stack.callback(layer.register_forward_hook(put_back).remove)
        yield


class CountedOnce(Part):
    """Running statistics take each batch once where its forward pass runs twice."""

    def check(self, trainer: Trainer, phases: Sequence[Phase]) -> None:
        """Raise UserError where a phase cannot have statistics re-estimated."""
        checks.check_norms(bool(layers(trainer.model)), phases, trainer.train_dataset)

    def during(self, trainer: Trainer, state: PhaseState) -> AbstractContextManager[None]:
        """Return the context in which they do: with gradient checkpointing."""
        return counted_once(trainer.model, state.args.activation_checkpointing)


def begin(
    trainer: Trainer,
    state: PhaseState,
    before: Fingerprints,
    weights: Mapping[str, torch.Tensor] | None,
    inputs: Callable[[dict[str, Any]], dict[str, Any]],
    processes: Processes,
) -> Fingerprints:
    """Re-estimate the statistics if a phase asks for it, as the first process sees them.

    Where it goes on from a checkpoint they are those of its `weights`: another processor would
    estimate them otherwise in the last bits. `inputs` makes a batch what the model takes. Returns
    the fingerprints with which the phase's own training begins: of `before` no more than those
    statistics has changed.
    """
    phase, model = state.phase, trainer.model
    if not phase.spec.reestimate_norms and not phase.adapters:
        return before
    prefix, free = state.backbone.prefix, set[str]()
    if phase.spec.reestimate_norms:
        images, count = trainer.train_dataset, phase.spec.reestimate_norms
        count = len(images) if count is True else min(int(count), len(images))
        found = layers(model)
        free = {f"{path.removeprefix(prefix)}.{name}" for path in found for name in STATISTICS}
        model.to(state.args.device)
        if weights is not None:
            with torch.no_grad():
                for path, layer in found.items():
                    for name in STATISTICS:
                        getattr(layer, name).copy_(weights[f"{path}.{name}"])
        else:
            with evaluating(model):
                batches = _batches(images, count, trainer.data_collator, state.args.seed)
                reestimate(model, map(inputs, batches))
        processes.take_first(
            getattr(layer, name) for layer in found.values() for name in STATISTICS
        )
    after = fingerprint(model, prefix)
    prove(before, after, (), state.backbone.groups, free)
    return after


def _batches(images: Any, count: int, collate: Callable[..., Any], seed: int) -> Iterator[Any]:
    """Return batches of so many images, in an order of the seed's; none has a single image."""
    order = np.random.default_rng(seed).permutation(len(images))[:count]
    parts = [part.tolist() for part in np.array_split(order, -(-len(order) // BATCH))]
    return iter(
        DataLoader(Subset(images, range(len(images))), batch_sampler=parts, collate_fn=collate)
    )


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[dict[str, Any]]) -> None:
    """Write into each layer mean and variance, over all values of all batches, of what comes to it.

    Batches are normalised by their own statistics on the way. All else of the model stays as it is.
    """
    sums: dict[str, list[torch.Tensor]] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            found = sums_of(args[0])
            sums[path] = (
                [a + b for a, b in zip(sums[path], found, strict=True)] if path in sums else found
            )

        return hook

    found = layers(model)
    kept = {n: b.clone() for p, m in found.items() for n, b in m.named_buffers(prefix=p)}
    with evaluating(model), ExitStack() as stack:
        for path, layer in found.items():
            layer.training = True
            stack.callback(layer.register_forward_pre_hook(watch(path)).remove)
        for batch in batches:
            model(**{key: value for key, value in batch.items() if key != "labels"})
    for path, layer in found.items():
        for name, buffer in layer.named_buffers():
            buffer.copy_(kept[f"{path}.{name}"])
        if path in sums:  # else forward never used it
            n, total, squares = sums[path]
            mean = total / n
            layer.running_mean.copy_(mean)
            layer.running_var.copy_((squares / n - mean**2).clamp(min=0) * n / (n - 1).clamp(min=1))


@torch.no_grad()
def sums_of(values: torch.Tensor) -> list[torch.Tensor]:
    """Return for each channel of (B, C, …) how many values there are, their sum and the sum of
    their squares: float64 on the CPU, the first a scalar, the others (C,)."""
    mean, spread = (each.double().cpu() for each in mean_and_variance(values))
    n = torch.tensor(float(values.numel() // len(mean)), dtype=torch.float64)
    return [n, n * mean, n * (spread + mean**2)]
