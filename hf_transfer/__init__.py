"""Transfer learning for image models: plan it, run it, prove it, publish it."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_transfer.backbones.load import load_backbone, load_model
    from hf_transfer.backbones.saving import save_model
    from hf_transfer.base.errors import UserError
    from hf_transfer.data.decoding import load_image
    from hf_transfer.data.image_set import ImageSet, load_data
    from hf_transfer.data.sources import scan
    from hf_transfer.deciding.add import add_images
    from hf_transfer.deciding.advise import advise
    from hf_transfer.deciding.auto import auto
    from hf_transfer.deciding.choices import list_backbones
    from hf_transfer.deciding.compare import compare
    from hf_transfer.deciding.runs import runs
    from hf_transfer.plans import plan
    from hf_transfer.recipe.load import load_recipe
    from hf_transfer.recipe.specs import DataSpec, PhaseSpec, Recipe
    from hf_transfer.results.report import RunReport
    from hf_transfer.run import train
    from hf_transfer.serving.embed import embed
    from hf_transfer.serving.evaluate import evaluate
    from hf_transfer.serving.explain import explain
    from hf_transfer.serving.export import export
    from hf_transfer.serving.hub import push
    from hf_transfer.serving.load import load
    from hf_transfer.serving.predict import predict
    from hf_transfer.space.app import demo
    from hf_transfer.training.layerwise import LayerwiseTrainer
    from hf_transfer.training.trainer import TransferTrainer

__all__ = [
    "DataSpec",
    "ImageSet",
    "LayerwiseTrainer",
    "PhaseSpec",
    "Recipe",
    "RunReport",
    "TransferTrainer",
    "UserError",
    "add_images",
    "advise",
    "auto",
    "compare",
    "demo",
    "embed",
    "evaluate",
    "explain",
    "export",
    "list_backbones",
    "load",
    "load_backbone",
    "load_data",
    "load_image",
    "load_model",
    "load_recipe",
    "plan",
    "predict",
    "push",
    "runs",
    "save_model",
    "scan",
    "train",
]

_WHERE = {
    "DataSpec": "recipe.specs",
    "ImageSet": "data.image_set",
    "LayerwiseTrainer": "training.layerwise",
    "PhaseSpec": "recipe.specs",
    "Recipe": "recipe.specs",
    "RunReport": "results.report",
    "TransferTrainer": "training.trainer",
    "UserError": "base.errors",
    "advise": "deciding.advise",
    "auto": "deciding.auto",
    "add_images": "deciding.add",
    "compare": "deciding.compare",
    "demo": "space.app",
    "embed": "serving.embed",
    "evaluate": "serving.evaluate",
    "explain": "serving.explain",
    "export": "serving.export",
    "list_backbones": "deciding.choices",
    "load": "serving.load",
    "load_backbone": "backbones.load",
    "load_data": "data.image_set",
    "load_image": "data.decoding",
    "load_model": "backbones.load",
    "load_recipe": "recipe.load",
    "plan": "plans",
    "predict": "serving.predict",
    "push": "serving.hub",
    "runs": "deciding.runs",
    "save_model": "backbones.load",
    "scan": "data.sources",
    "train": "run",
}

if any(Path(__file__).parent.glob("hf_transfer*.so")):
    from hf_transfer.base.version import OVERWRITTEN

    if Path(sys.argv[0]).stem == "hf-transfer" or sys.orig_argv[1:3] == ["-m", "hf_transfer"]:
        print(f"hf-transfer: error: {OVERWRITTEN}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(OVERWRITTEN)


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for: torch is slow to load."""
    if name == "__version__":
        return import_module("hf_transfer.base.version").__version__
    if name in _WHERE:
        return getattr(import_module(f"hf_transfer.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'hf_transfer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


import_module("hf_transfer.backbones.auto_classes").register()  # imports nothing heavy
