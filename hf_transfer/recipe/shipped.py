"""The recipes and accelerate configurations that travel with the package."""

from __future__ import annotations

from pathlib import Path

from hf_transfer.base.errors import UserError
from hf_transfer.base.nearest import nearest


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that travel with the package, by name, in the order of their names."""
    return {path.stem: path for path in _shipped("*.yaml")}


def accelerate_configurations() -> dict[str, Path]:
    """Return the configurations for `accelerate launch` that travel with the recipes, by name."""
    return {f"accelerate/{path.stem}": path for path in _shipped("accelerate/*.yaml")}


def listing() -> str:
    """Return a table of the shipped recipes: name and what each does."""
    shipped = shipped_recipes()
    wide = max(map(len, shipped), default=0)
    lines = []
    for name, path in shipped.items():
        title = path.read_text(encoding="utf-8").splitlines()[0].partition(": ")[2]
        lines.append(f"{name:{wide}}  {title}")
    return "\n".join(
        [
            *lines,
            "",
            "hf-transfer recipes NAME prints one, to copy and change.",
            "Configurations of accelerate for several processes are printed in the same way: "
            f"{', '.join(accelerate_configurations())}",
        ]
    )


def text_of(name: str) -> str:
    """Return the text of a shipped recipe or configuration. Raises UserError for another name."""
    known = {**shipped_recipes(), **accelerate_configurations()}
    if name not in known:
        near = nearest(name, known) or f"; there are {', '.join(known)}"
        raise UserError(f"there is no shipped recipe {name!r}{near}")
    return known[name].read_text(encoding="utf-8").rstrip("\n")


def _shipped(pattern: str) -> list[Path]:
    here = Path(__file__).resolve().parents[1]
    folders = (here / "recipes", here.parent / "recipes")  # a wheel; a checkout
    folder = next((folder for folder in folders if folder.is_dir()), None)
    return sorted(folder.glob(pattern)) if folder else []
