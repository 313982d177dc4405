"""torchvision's networks in transformers' Auto classes, from `import hf_transfer` on.

A saved model opens without `trust_remote_code`, since its code is here. Importing transformers
would be slow, so nothing is registered before someone else has imported the Auto classes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MODEL_TYPE = "hf_transfer_torchvision"


def _register_config(auto: ModuleType) -> None:
    from hf_transfer.backbones.configuration_torchvision import TorchvisionConfig

    auto.AutoConfig.register(MODEL_TYPE, TorchvisionConfig, exist_ok=True)


def _register_model(auto: ModuleType) -> None:
    from hf_transfer.backbones.modeling_torchvision import (
        TorchvisionConfig,
        TorchvisionForImageClassification,
    )

    auto.AutoModelForImageClassification.register(
        TorchvisionConfig, TorchvisionForImageClassification, exist_ok=True
    )


AFTER: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
}


class _AfterImport:
    """Leaves every import to the other finders, and registers after one of AFTER was imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in AFTER:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                AFTER[name](module)

            spec.loader.exec_module = exec_module
        return spec


def register() -> None:
    """Register torchvision's networks now where the Auto classes are imported, else when they are.

    Imports nothing by itself.
    """
    for name, add in AFTER.items():
        if name in sys.modules:
            add(sys.modules[name])
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
