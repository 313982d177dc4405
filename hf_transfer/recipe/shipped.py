"""The recipes and accelerate configurations that travel with the package."""

from __future__ import annotations

from pathlib import Path


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that travel with the package, by name, in the order of their names."""
    return {path.stem: path for path in _shipped("*.yaml")}


def accelerate_configurations() -> dict[str, Path]:
    """Return the configurations for `accelerate launch` that travel with the recipes, by name."""
    return {f"accelerate/{path.stem}": path for path in _shipped("accelerate/*.yaml")}


def _shipped(pattern: str) -> list[Path]:
    here = Path(__file__).resolve().parents[1]
    folders = (here / "recipes", here.parent / "recipes")  # a wheel; a checkout
    folder = next((folder for folder in folders if folder.is_dir()), None)
    return sorted(folder.glob(pattern)) if folder else []
