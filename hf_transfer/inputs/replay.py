"""A network run from its cut on: what lies before the cut answers at once, without computing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hf_transfer.inputs.passage import mapped

if TYPE_CHECKING:
    from hf_transfer.inputs.cut import Cut


class Player:
    """Runs a model's forward from the cut on: `forward` stands for the model's own.

    A context manager. Inside, modules that lie before the cut answer at once, with NaN for all
    numbers: a network that used them all the same would not go unnoticed. The model's `train` and
    `parameters` pass them by, which otherwise would take as long as a small head.
    """

    def __init__(self, model: nn.Module, cut: Cut) -> None:
        self.model, self.own, self.cut = model, model.forward, cut
        self._arriving: dict[str, list[Tensor | None]] = {}  # not yet at the modules at the cut
        self._replaying = False  # before the cut
        self._changed: list[tuple[nn.Module, str]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Player:
        skipped: set[nn.Module] = set()
        for path, answer in self.cut.answers.items():
            module = self.model.get_submodule(path)
            skipped.update(module.modules())
            self._set(module, "forward", self._answering(answer, module.forward))
        for path in self.cut.arrivals:
            module, arrive = self.model.get_submodule(path), self._arrival(path)
            self._hooks.append(
                module.register_forward_pre_hook(arrive, prepend=True, with_kwargs=True)
            )
        alive = [module for module in self.model.modules() if module not in skipped]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        train = self.model.train

        def to_mode(mode: bool = True) -> nn.Module:
            if not mode:  # then images may come, too
                return train(mode)
            for module in alive:
                module.training = True
            return self.model

        def parameters(recurse: bool = True) -> Iterator[nn.Parameter]:
            return iter(trained)

        self._set(self.model, "train", to_mode)
        self._set(self.model, "parameters", parameters)
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        for module, name in self._changed:
            module.__dict__.pop(name, None)
        self._hooks, self._changed = [], []

    def _set(self, module: nn.Module, name: str, value: Any) -> None:
        if name in module.__dict__:
            return  # somebody else's: left alone
        module.__dict__[name] = value
        self._changed.append((module, name))

    def _answering(self, answer: Any, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return answer if self._replaying else own(*args, **kwargs)

        return forward

    def _arrival(self, path: str) -> Callable[..., Any]:
        def arrive(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if path not in self._arriving:
                return None  # images, or a second call
            values = iter(self._arriving.pop(path))
            self._replaying = bool(self._arriving)

            def stored(tensor: Tensor) -> Tensor:
                value = next(values)
                return tensor if value is None else value

            return mapped((args, kwargs), stored)

        return arrive

    def forward(self, *args: Any, features: Sequence[Tensor] | None = None, **kwargs: Any) -> Any:
        """Return what the model's own forward gives for the images whose features these are.

        Without `features` it is the model's own forward.
        """
        if features is None:
            return self.own(*args, **kwargs)
        given = iter(features)
        self._arriving = {
            path: [None if one is None else one.unpacked(next(given)) for one in crossings]
            for path, crossings in self.cut.arrivals.items()
        }
        self._replaying = True
        try:
            return self.own(pixel_values=self.cut.nothing, **kwargs)
        finally:
            self._arriving, self._replaying = {}, False
