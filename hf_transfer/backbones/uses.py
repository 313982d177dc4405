"""When each parameter first acts on what comes from an image, and what that costs.

Every operation on tensors is watched, so position embeddings, class tokens and layer scales are
seen too, which hooks on modules miss.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from hf_transfer.backbones.watching import Watch, name_of, tensors_in

PRODUCTS = ("matmul", "__matmul__", "bmm", "mm")


class Uses(Watch):
    """Records when each parameter first acts on what comes from the image, and what it costs.

    What is computed from parameters and constants alone (a standardised weight, a table looked up
    by fixed positions) stands for those parameters until it meets something else.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.size = {name: p.numel() for name, p in model.named_parameters()}
        self.made = {id(b): (b, frozenset[str]()) for b in model.buffers()}
        self.acted: dict[str, None] = {}
        self.aside: set[str] = set()  # what acts, and reaches no output
        self.touched: dict[str, tuple[int, int]] = {}  # how many had acted, been touched, before
        self.operations = 0
        self.touched_in: dict[str, int] = {}  # the operation that a parameter is first touched in
        # Tensors of the image, by id, with the operations that made and last used them.
        self.lives: dict[int, tuple[torch.Tensor, int, int]] = {}
        self.macs: dict[str, int] = {}
        self.before: dict[str, int] = {}  # module to how many parameters had acted before it ran

    def order(self) -> list[str]:
        """Return parameters by first use; those lost from sight by first touch."""
        lost = [name for name in self.touched if name not in self.acted]
        rank = {name: (i, 1, 0) for i, name in enumerate(self.acted)}
        rank |= {name: (self.touched[name][0], 0, self.touched[name][1]) for name in lost}
        return sorted(rank, key=rank.__getitem__)

    def crossing(self) -> dict[str, int]:
        """Return how many numbers of the image are made before each parameter is first touched, and
        used then or later."""
        change: Counter[int] = Counter()
        for tensor, made, used in self.lives.values():
            change[made + 1] += tensor.numel()
            change[used + 1] -= tensor.numel()
        alive = list(accumulate(change[operation] for operation in range(self.operations + 1)))
        return {name: alive[operation] for name, operation in self.touched_in.items()}

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Record what an operation is made of and what it costs."""
        name = name_of(func)
        made = list(tensors_in(args[0] if name == "__setitem__" else result))
        if not made:
            return  # a look at a shape, a type or a device
        given = list(tensors_in((args, kwargs)))
        origins = [self._origin(tensor) for tensor in given]
        used = frozenset[str]().union(*(origin for origin in origins if origin))
        self.operations += 1
        for parameter in sorted(used - self.touched.keys()):
            self.touched[parameter] = (len(self.acted), len(self.touched))
            self.touched_in[parameter] = self.operations
        for tensor, origin in zip(given, origins, strict=True):
            if origin is None:  # what no operation made is the image itself
                _, made_in, _ = self.lives.get(id(tensor), (tensor, 0, 0))
                self.lives[id(tensor)] = (tensor, made_in, self.operations)
        if None not in origins:
            self.made.update({id(tensor): (tensor, used) for tensor in made})
            return
        for tensor, origin in zip(given, origins, strict=True):
            if origin:
                by_touch = sorted(origin, key=lambda parameter: self.touched[parameter][1])
                self.acted.update(dict.fromkeys(by_touch))
                main = max(by_touch, key=self.size.__getitem__)
                self.macs[main] = self.macs.get(main, 0) + _macs(name, tensor, made[0], args)
        for tensor in made:
            self.made.pop(id(tensor), None)  # changed in place
            self.lives.setdefault(id(tensor), (tensor, self.operations, self.operations))

    def _origin(self, tensor: torch.Tensor) -> frozenset[str] | None:
        """Return the parameters that a tensor is made of alone, None if of anything else."""
        if id(tensor) in self.names:
            return frozenset((self.names[id(tensor)],))
        return self.made[id(tensor)][1] if id(tensor) in self.made else None


def _macs(name: str, weight: torch.Tensor, result: torch.Tensor, args: Any) -> int:
    """Return the multiply-adds of a convolution or matrix product with a weight; 0 for others."""
    if weight.ndim < 2:
        return 0
    if name.startswith("conv"):
        positions = args[0] if "transpose" in name else result
        return positions.numel() * weight.numel() // weight.shape[0]
    if name == "linear":
        return result.numel() * weight.shape[-1]
    if name == "multi_head_attention_forward":
        return args[0].numel() // args[0].shape[-1] * weight.numel()
    if name in PRODUCTS:
        return result.numel() * args[0].shape[-1]
    if name == "addmm":
        return result.numel() * args[1].shape[-1]
    if name == "einsum":
        return result.numel() * _summed(args[0], list(tensors_in(args[1:])))
    return 0


def _summed(equation: str, operands: list[torch.Tensor]) -> int:
    """Return over how many elements an einsum sums for each of its results."""
    terms, _, kept = equation.replace(" ", "").partition("->")
    sides: dict[str, int] = {}
    for term, operand in zip(terms.split(","), operands, strict=True):
        left, _, right = term.partition("...")
        sides |= dict(zip(left, operand.shape, strict=False))
        sides |= dict(zip(reversed(right), reversed(operand.shape), strict=False))
    return math.prod(side for letter, side in sides.items() if letter not in kept)
