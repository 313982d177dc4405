"""Commands that help to decide: advise, compare, backbones, runs."""

from __future__ import annotations

import argparse
from typing import Any

from hf_transfer.base.console import count, say, width
from hf_transfer.cli.arguments import TOGETHER, command, counts, seeds_of

USUAL = "eight, from scratch to full, and auto"
ELSEWHERE = {  # options of train, and what to give in their place
    "--preset": "give --backbone, --image-size and --minutes",
    "--scratch": "name the recipe scratch beside the others",
    "--no-refit": "auto is compared as it trains on all labelled images; leave it out",
    "--seed": "give --seeds 3 for three seeds, or --seeds 7, for the seed 7 alone",
}


def add(commands: Any) -> None:
    """Add the commands that help to decide."""
    words = "say what to freeze and what to unfreeze"
    advise = command(commands, "advise", _advise, words, first=_check_names)
    data = "folder of class folders, table (CSV, JSON Lines, Parquet) or data set on the Hub"
    advise.path("--data", "PATH", data, required=True)
    names = "timm/NAME, transformers/REPO, torchvision/NAME or folders; several are ranked"
    advise.path("--backbone", "ID", names, nargs="+", required=True)
    images = "images without labels: also say whether to learn from them first"
    advise.path("--unlabelled", "FOLDER", images)
    advise.argument("--budget", "TIME", "time limit, such as 10m (default: none)")
    advise.argument("--seed", "N", "seed that draws the images (default: 0)", type=int, default=0)
    setting = "change a key of the recipe, such as data.image_size=96"
    advise.argument("--set", "KEY=VALUE", setting, action="append", default=[])
    advise.path("--out", "DIR", "folder to write recipe.yaml, advice.html and advice.json to")

    words = "compare recipes on the same images"
    compare = command(commands, "compare", _compare, words, first=_check_names)
    compare.path("recipes", "RECIPE", f"recipes, or auto (default: {USUAL})", nargs="*")
    compare.path("--data", "PATH", "folder of class folders, or table", required=True)
    compare.path("--backbone", "ID", "timm/NAME, transformers/REPO, torchvision/NAME or a folder")
    numbers = "labelled images of each class, such as 5,20,100 (default: all)"
    compare.argument("--per-class", "N,N", numbers, type=counts, default=())
    seeds = "number of seeds, or the seeds themselves, such as 0,2,5 (default: 3)"
    compare.argument("--seeds", "N", seeds, type=seeds_of, default=3)
    budget = "minutes for each run of auto (default: 5)"
    compare.argument("--minutes", "N", budget, type=float, default=5.0)
    compare.argument(
        "--epochs", "N", "length of the recipes' phases, or of fine-tuning", type=float
    )
    compare.argument("--image-size", "N", "side of the images in pixels", type=count)
    compare.argument("--group", "G", TOGETHER)
    compare.elsewhere = ELSEWHERE
    setting = "change a key of all recipes, such as data.image_size=96"
    compare.argument("--set", "KEY=VALUE", setting, action="append", default=[])
    compare.path("--out", "DIR", "folder to write the comparison to")

    words = "list backbones to choose from, and which of them are already downloaded"
    listed = command(commands, "backbones", _backbones, words)
    listed.path("ids", "ID", "further backbones or folders to list", nargs="*")
    listed.path("--data", "PATH", "images: measure the time of one pass over them")
    listed.argument("--image-size", "N", "side of the images in pixels", type=count)

    words = "list the runs in a folder, and the best of those on the same images"
    made = command(commands, "runs", _runs, words)
    made.path("folder", "DIR", "folder of run folders (default: runs)", nargs="?", default="runs")


def _backbones(args: argparse.Namespace) -> None:
    from hf_transfer.deciding.choices import format_backbones, list_backbones

    say(format_backbones(list_backbones(args.ids, args.data, args.image_size), width()), fold=False)


def _runs(args: argparse.Namespace) -> None:
    from hf_transfer.deciding.runs import format_runs, runs

    say(format_runs(runs(args.folder), width()), fold=False)


def _check_names(args: argparse.Namespace) -> None:
    """Raise UserError for names of nothing, and for results that could not be written."""
    from hf_transfer.backbones.origins import check_id
    from hf_transfer.base.outputs import folder_to_write
    from hf_transfer.data.sources import check_place
    from hf_transfer.recipe.load import load_recipe

    check_place(args.data)
    if args.out:
        folder_to_write(args.out)
    backbones = [args.backbone] if isinstance(args.backbone, str) else args.backbone or ()
    for backbone in backbones:
        check_id(backbone)
    for recipe in getattr(args, "recipes", ()):
        if recipe != "auto":
            load_recipe(recipe, args.set)


def _compare(args: argparse.Namespace) -> None:
    from hf_transfer.deciding.compare import compare
    from hf_transfer.deciding.compare_text import format_comparison
    from hf_transfer.progress import quiet

    quiet()
    found = compare(
        args.recipes,
        data=args.data,
        backbone=args.backbone,
        per_class=args.per_class,
        seeds=args.seeds,
        overrides=args.set,
        minutes=args.minutes,
        epochs=args.epochs,
        image_size=args.image_size,
        group=args.group,
        out=args.out,
        on_progress=say,
    )
    say(f"\n{format_comparison(found)}")


def _advise(args: argparse.Namespace) -> None:
    from hf_transfer.deciding.advise import advise
    from hf_transfer.deciding.advise_text import format_advice
    from hf_transfer.progress import quiet

    quiet()
    found = advise(
        args.data,
        backbone=args.backbone,
        unlabelled=args.unlabelled,
        budget=args.budget,
        overrides=args.set,
        seed=args.seed,
        out=args.out,
        on_progress=say,
    )
    say(f"\n{format_advice(found, width())}")
    if found.out:
        say(f"\nwritten to {found.out}: recipe.yaml, advice.html, advice.json")
