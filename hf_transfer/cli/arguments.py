"""What the commands share: how one is added, and the arguments that name a recipe or a model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from hf_transfer.base.console import Parser, count
from hf_transfer.base.errors import UserError

MODEL = "run folder, model folder or Hub repository"
TOGETHER = "column, or pattern on file names, by which images, as of a patient, stay in one split"
MODEL_OR_FILE = "run folder, model folder, Hub repository or ONNX file"


def command(
    commands: Any,
    name: str,
    call: Callable[..., Any],
    words: str,
    *,
    loads: bool = False,
    first: Callable[[argparse.Namespace], None] = lambda _: None,
) -> Parser:
    """Add a command that calls `call`; one that `loads` a model runs on the free cores. `first`
    refuses what can be refused before anything that takes seconds is imported."""
    description = f"{words[0].upper()}{words[1:]}."
    made: Parser = commands.add_parser(name, help=words, description=description)
    made.set_defaults(command=call, parser=made, resumable=False, loads=loads, first=first)
    return made


def recipe_arguments(command: Parser, what: str = "shipped recipe, or YAML file") -> None:
    """Add a recipe and what the command line changes in it."""
    command.path("recipe", "RECIPE", what)
    data = "folder of class folders, table (CSV, JSON Lines, Parquet) or data set on the Hub"
    command.path("--data", "PATH", data)
    images = "folder of images without labels, for a recipe that learns from them first"
    command.path("--unlabelled", "FOLDER", images)
    command.path("--backbone", "ID", "timm/NAME, transformers/REPO, torchvision/NAME or a folder")
    command.argument("--seed", "N", "seed (default: the recipe's)", type=int)
    setting = "change a key of the recipe, such as phases.0.lr=1e-4"
    command.argument("--set", "KEY=VALUE", setting, action="append", default=[])


def recipe_of(args: argparse.Namespace, allow_code: bool = True) -> Any:
    """Return the recipe with what the command line changes in it."""
    from hf_transfer.recipe.load import asked

    return asked(
        args.recipe, args.data, args.backbone, args.seed, args.set, allow_code, args.unlabelled
    )


def data_of(path: str, settings: Sequence[str]) -> Any:
    """Return labelled images with what the command line changes in how they are read. Raises
    UserError."""
    if other := next((each for each in settings if not each.startswith("data.")), None):
        raise UserError(
            f"--set {other}: here it changes keys of data, as data.label_column=species"
        )
    from hf_transfer.recipe.load import asked

    several = any(each.startswith("data.label_columns") for each in settings)
    task = (
        ["task=multi_label"] if several else []
    )  # of which the columns may be; the model has its own
    return asked("exact_head", path, overrides=[*settings, *task]).data


def counts(text: str) -> tuple[int, ...]:
    """Return numbers given on the command line with commas between them."""
    return tuple(count(part.strip()) for part in text.split(","))


def seeds_of(text: str) -> int | tuple[int, ...]:
    """Return a number of seeds; with a comma, the seeds themselves: "7," is the seed 7 alone."""
    if "," not in text:
        return count(text)
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    if not all(part.isdecimal() and len(part) < 11 for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is not a list of seeds such as 0,2,5")
    return tuple(map(int, parts))
