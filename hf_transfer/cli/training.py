"""Commands that plan and train: train, plan, recipes, groups."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_transfer.base import launch
from hf_transfer.base.console import count, interrupted_twice, say, stopped_in_words, warn, width
from hf_transfer.base.errors import UserError
from hf_transfer.base.nearest import nearest
from hf_transfer.cli.arguments import TOGETHER, command, recipe_arguments, recipe_of
from hf_transfer.deciding.presets import PRESETS

TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")  # those of a recipe's report_to


def add(commands: Any) -> None:
    """Add the commands that plan and train."""
    words = "train the best model that a time budget allows, or a recipe; write a run folder"
    train = command(commands, "train", _train, words)
    found = "folder or table of labelled images, to find what is best for them; or a recipe"
    recipe_arguments(train, found)
    size = "auto: how large a backbone and image, and how long"
    train.argument("--preset", None, size, choices=tuple(PRESETS))
    train.argument("--minutes", "N", "auto: time budget (default: the preset's)", type=float)
    train.argument("--epochs", "N", "length of fine-tuning, or of a recipe's phases", type=float)
    train.argument("--image-size", "N", "side of the images in pixels", type=count)
    train.argument("--group", "G", TOGETHER)
    train.flag("--no-refit", "auto: do not train on all labelled images at the end")
    train.flag("--scratch", "auto: also train from random weights, to compare with")
    train.path("--out", "DIR", "run folder (default: runs/RECIPE)")
    train.flag("--resume", "resume the run in --out")
    more = "finished run to add the images to, of old or new classes; only its head is solved again"
    train.path("--add", "RUN", more)
    tracker = "log to tensorboard, trackio, wandb or mlflow; may be repeated"
    options: dict[str, Any] = {"action": "append", "default": [], "choices": TRACKERS}
    train.argument("--report-to", "NAME", tracker, **options)
    train.flag("--allow-code", "run the Python files that the recipe's metrics name")
    train.argument("--push-to", "REPO", "repository to push the finished run to, as OWNER/NAME")

    plan = command(commands, "plan", _plan, "show what a recipe would train, without training")
    recipe_arguments(plan)
    plan.argument("--processes", "N", "number of processes (default: 1)", type=count, default=1)

    recipes = command(commands, "recipes", _recipes, "list the shipped recipes, or print one")
    recipes.argument("name", "NAME", "recipe to print", nargs="?")
    recipes.flag("--schema", "print the JSON schema of recipes, for editors")

    groups = command(commands, "groups", _groups, "show the layer groups of a backbone")
    groups.path("backbone", "BACKBONE", "such as timm/resnet50", nargs="?")
    grains = ("blocks", "stages")
    groups.argument("--grain", None, "size of a group (default: blocks)", choices=grains)
    groups.flag("--all", "group every known architecture")
    groups.path("--out", "FILE", "table to write with --all: .csv or .md")


def _train(args: argparse.Namespace) -> None:
    if args.push_to and launch.is_main():  # before hours of training
        from hf_transfer.serving.hub import check_owner

        check_owner(args.push_to)
    out = _trained(args)
    if args.push_to and launch.is_main():
        from hf_transfer.serving.hub import push_finished

        with interrupted_twice():
            say(push_finished(out, args.push_to, announce=warn))


def _trained(args: argparse.Namespace) -> Path:
    """Train, and return the run's folder."""
    from hf_transfer.plans import plans_text
    from hf_transfer.results.run_folder import check_folder

    launch.check()
    if args.add:
        return _added(args)
    if args.report_to:
        names = args.report_to
        args.set.append(f"report_to={names[0] if len(names) == 1 else names}")
    if is_auto(args.recipe):
        return _auto(args)
    _check_word(args.recipe)
    args.set += _plain_options(args)
    recipe = recipe_of(args, args.allow_code)
    out = Path(args.out or Path("runs") / recipe.name)
    if recipe.compare is not None:
        return _quickstart(args, recipe, out)
    args.resumable = True
    if launch.is_main():  # alone: what it writes into the folder is in the way of no other
        check_folder(out, recipe, args.resume)
        logging.getLogger("hf_transfer").setLevel(logging.INFO)
        say(plans_text(recipe, launch.count(), width()))
    from hf_transfer.progress import EpochLines, TrainingBar, quiet
    from hf_transfer.results.summary import summary
    from hf_transfer.run import run

    quiet()
    with stopped_in_words():
        report = run(recipe, out, resume=args.resume, callbacks=[EpochLines(say), TrainingBar()])
    say(f"{summary(report)}\nwritten to {out}: report.html, report.json, model/")
    return out


def _added(args: argparse.Namespace) -> Path:
    if args.data and is_auto(args.recipe) and args.recipe != "auto":
        raise UserError(f"the images are given twice: {args.recipe} and --data {args.data}")
    ignored = (
        "set",
        "backbone",
        "preset",
        "minutes",
        "epochs",
        "image_size",
        "no_refit",
        "scratch",
    )
    _refuse(args, (*ignored, "unlabelled", "resume", "report_to", "allow_code"), "--add")
    from hf_transfer.deciding.add import add_images, format_added
    from hf_transfer.progress import quiet

    quiet()
    data = args.data or args.recipe
    found = add_images(args.add, data, group=args.group, out=args.out, seed=args.seed or 0)
    say(format_added(found))
    return found.out


def _refuse(args: argparse.Namespace, names: Sequence[str], what: str) -> None:
    """Raise UserError for an option that was given and that `what` would not look at."""
    if given := [name for name in names if getattr(args, name)]:
        raise UserError(f"{what} does not use --{given[0].replace('_', '-')}; remove it")


def is_auto(word: str) -> bool:
    """Return whether the word after `train` is auto, or labelled images in place of a recipe."""
    if word == "auto":
        return True
    from hf_transfer.data.tables import SUFFIXES
    from hf_transfer.recipe.shipped import shipped_recipes

    if word in shipped_recipes() or word.lower().endswith((".yaml", ".yml")):
        return False
    path = Path(word)
    if path.is_dir() or (path.is_file() and path.suffix.lower() in (*SUFFIXES, ".parquet")):
        return True
    return not path.exists() and re.fullmatch(r"[\w-]+/[\w.-]+", word) is not None  # on the Hub


def _check_word(word: str) -> None:
    """Raise UserError for what is no recipe and no path, where images have nearly its name."""
    from hf_transfer.data.sources import near_places
    from hf_transfer.recipe.shipped import shipped_recipes

    recipes, path = shipped_recipes(), Path(word)
    if word in recipes or path.exists():
        return
    if images := [str(near) for near in near_places(path) if is_auto(str(near))]:
        kind = "folder" if Path(images[0]).is_dir() else "table"
        near = nearest(word, recipes)
        raise UserError(f"there is no recipe {word!r}{near}; did you mean the {kind} {images[0]}?")


def _auto(args: argparse.Namespace) -> Path:
    data = args.data if args.recipe == "auto" else args.recipe
    if args.recipe != "auto" and args.data:
        raise UserError(f"the images are given twice: {args.recipe} and --data {args.data}")
    if data is None:
        raise UserError("auto needs labelled images: hf-transfer train FOLDER, or --data FOLDER")
    if args.resume:
        raise UserError("auto cannot be resumed; remove --resume, and choose another --out")
    _refuse(args, ("unlabelled", "allow_code"), "auto")
    from hf_transfer.deciding.auto import auto
    from hf_transfer.progress import quiet
    from hf_transfer.results.summary import summary

    quiet()
    with stopped_in_words():
        report = auto(
            data,
            args.backbone,
            preset=args.preset or "good",
            minutes=args.minutes,
            epochs=args.epochs,
            image_size=args.image_size,
            group=args.group,
            seed=args.seed or 0,
            refit=not args.no_refit,
            scratch=args.scratch,
            overrides=args.set,
            out=args.out,
            on_progress=say,
        )
    out = Path(args.out or Path("runs") / report.name)
    say(report.metrics["said"][0])
    say(f"{summary(report)}\nwritten to {out}: report.html, report.json, model/")
    return out


def _plain_options(args: argparse.Namespace) -> list[str]:
    """Return the plain options as settings of a recipe. Raises UserError for those of auto."""
    only = {
        "--preset": args.preset,
        "--minutes": args.minutes,
        "--no-refit": args.no_refit,
        "--scratch": args.scratch,
    }
    if given := [name for name, value in only.items() if value is not None and value is not False]:
        raise UserError(f"{given[0]} is for auto (hf-transfer train FOLDER), not for a recipe")
    keys = {
        "phases.*.epochs": args.epochs,
        "data.image_size": args.image_size,
        "data.group": args.group and json.dumps(args.group),
    }
    return [f"{key}={value}" for key, value in keys.items() if value is not None]


def _quickstart(args: argparse.Namespace, recipe: Any, out: Path) -> Path:
    if args.resume:
        raise UserError(f"recipe {recipe.name} cannot be resumed; remove --resume")
    if launch.count() > 1:
        raise UserError(f"recipe {recipe.name} runs in one process; start it without a launcher")
    say(f"{recipe.name}: {recipe.source.backbone} learns letters, then digits …")
    from hf_transfer.deciding.quickstart import run_quickstart
    from hf_transfer.deciding.quickstart_text import format_quickstart
    from hf_transfer.progress import quiet

    quiet()
    say(f"{format_quickstart(run_quickstart(recipe, out, say))}\n\nwritten to {out}")
    return out


def _plan(args: argparse.Namespace) -> None:
    from hf_transfer.plans import plans_text

    say(plans_text(recipe_of(args), args.processes, width()))


def _recipes(args: argparse.Namespace) -> None:
    from hf_transfer.recipe.reference import schema_text
    from hf_transfer.recipe.shipped import listing, text_of

    if args.schema or args.name:
        return say(schema_text() if args.schema else text_of(args.name), fold=False)
    say(listing())


def _groups(args: argparse.Namespace) -> int:
    if args.all:
        from hf_transfer.backbones.sweep import sweep_to

        return sweep_to(Path(args.out) if args.out else None, say)
    if args.backbone is None:
        raise UserError("groups needs a backbone, such as timm/resnet50, or --all")
    from hf_transfer.planning.groups import groups_text
    from hf_transfer.plans import groups_of

    say(groups_text(groups_of(args.backbone).grain(args.grain or "blocks"), width()))
    return 0
