"""Batch statistics over the images of all processes, as if one process had the whole batch.

nn.SyncBatchNorm takes no CPU tensors and replaces a layer; here the layers stay, and with them
their groups, optimizer and proof. One path serves all devices, at the price of a few passes over a
layer's input that a kernel of its own would save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from transformers import Trainer

from hf_transfer.base.errors import UserError
from hf_transfer.base.processes import Processes
from hf_transfer.training.phase_state import Part, PhaseState

LAYERS = nn.modules.batchnorm._BatchNorm


class SharedStatistics(Part):
    """A phase's layers that are not frozen normalise by the images of all processes."""

    def __init__(self, asked: bool, here: Processes) -> None:
        self.asked, self.here = asked, here

    @contextmanager
    def during(self, trainer: Trainer, state: PhaseState) -> Iterator[None]:
        """Make them do so until the block ends, if that was asked for and there are other
        processes."""
        with ExitStack() as stack:
            if self.asked and self.here.count > 1:
                still = set(state.still_modules)
                for path, layer in trainer.model.named_modules():
                    if isinstance(layer, LAYERS) and layer not in still:
                        own = layer.__dict__.get("forward")
                        stack.callback(_put_back, layer, own)
                        layer.forward = _sharing(path, layer, state, self.here)
            yield


def _put_back(layer: nn.Module, own: Any) -> None:
    layer.__dict__.pop("forward")
    if own is not None:
        layer.forward = own


def _sharing(path: str, layer: nn.Module, state: PhaseState, here: Processes) -> Callable[..., Any]:
    own = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not layer.training:
            return own(*args, **kwargs)
        with _Shared(here, state.share != 0) as mode:
            result = own(*args, **kwargs)
        if not mode.reached:
            raise UserError(
                f"sync_batchnorm: {path}, a {type(layer).__name__}, takes its batch statistics by "
                "itself; remove sync_batchnorm"
            )
        return result

    return forward


class _Shared(TorchFunctionMode):
    """Stands in for F.batch_norm while training; `counts`: whether this batch holds images of this
    process, and is not there only because every process has to run."""

    def __init__(self, here: Processes, counts: bool) -> None:
        super().__init__()
        self.here, self.counts, self.reached = here, counts, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.batch_norm or not kwargs["training"]:
            return func(*args, **(kwargs or {}))
        self.reached = True
        return self._batch_norm(*args, **kwargs)

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        mean, var, total = statistics(x.detach(), self.counts, self.here)
        if running_mean is not None:
            unbiased = var * (total / (total - 1).clamp(min=1))
            with torch.no_grad():
                running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
                running_var.mul_(1 - momentum).add_(unbiased, alpha=momentum)
        return Normalise.apply(x, weight, bias, mean, var, total, self.counts, eps)


def statistics(x: Tensor, counts: bool, here: Processes) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and biased variance (C,), in float32 at least, of the values (B, C, …) of all
    processes, and their number for each channel (). Unless it `counts`, x is left out.

    Source: Chan, Golub and LeVeque, Algorithms for computing the sample variance, 1983.
    """
    mean, var = mean_and_variance(x)
    # A sum of rows that are zero elsewhere: every backend has that for tensors on any device.
    rows = mean.new_zeros(here.count, 2 * len(mean) + 1)
    if counts:
        number = torch.full_like(mean[:1], x.numel() // len(mean))
        rows[here.rank] = torch.cat([mean, var, number])
    dist.all_reduce(rows)
    numbers, (means, variances) = rows[:, -1:], rows[:, :-1].chunk(2, 1)
    total = numbers.sum()
    mean = (numbers * means).sum(0) / total
    var = (numbers * (variances + (means - mean) ** 2)).sum(0) / total
    return mean, var, total


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (C,) of values (B, C, …), in float32 at least.

    In two passes: on a CPU torch's own variance takes four times as long.
    """
    mean = _wide(x).mean(_sides(x), keepdim=True)
    return mean.flatten(), (x - mean).square_().mean(_sides(x))


class Normalise(torch.autograd.Function):
    """Normalises x (B, C, …) by mean and variance (C,) of the x of all processes, through which its
    gradient goes, too. Source: Ioffe and Szegedy, arXiv:1502.03167, section 3."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        total: Tensor,
        counts: bool,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, total)
        ctx.counts, ctx.eps = counts, eps
        weight, bias = (None if value is None else _wide(value) for value in (weight, bias))
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, total = ctx.saved_tensors
        needs, scale = ctx.needs_input_grad, (var + ctx.eps).rsqrt()

        def spread(values: Tensor) -> Tensor:
            return values.view(-1, *[1] * (x.ndim - 2))

        grad, centred = _wide(grad), _wide(x) - spread(mean)
        sums = torch.stack([grad.sum(_sides(x)), (grad * centred).sum(_sides(x))])
        of_bias, of_weight = sums[0], sums[1] * scale
        if needs[0]:
            sums = sums.clone()
            dist.all_reduce(sums)
            if ctx.counts:  # else nothing that it gave is in mean and variance
                shift, slope = sums / total
                grad = grad - spread(shift) - centred * spread(slope * scale**2)
            grad = grad * spread(scale if weight is None else scale * weight)
        of_x = grad.to(x.dtype) if needs[0] else None
        found = (of_weight if needs[1] else None, of_bias if needs[2] else None)
        return of_x, *found, None, None, None, None, None


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sides(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]
