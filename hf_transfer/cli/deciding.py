"""Commands that help to decide: compare."""

from __future__ import annotations

import argparse
from typing import Any

from hf_transfer.base.console import count, say
from hf_transfer.cli.arguments import command, counts


def add(commands: Any) -> None:
    """Add the commands that help to decide."""
    compare = command(commands, "compare", _compare, "compare recipes on the same images")
    compare.path("recipes", "RECIPE", "recipes (default: from scratch to full)", nargs="*")
    compare.path("--data", "PATH", "folder of class folders, or table", required=True)
    compare.path("--backbone", "ID", "timm/NAME, transformers/REPO, torchvision/NAME or a folder")
    numbers = "labelled images of each class, such as 5,20,100 (default: all)"
    compare.argument("--per-class", "N,N", numbers, type=counts, default=())
    compare.argument("--seeds", "N", "number of seeds (default: 3)", type=count, default=3)
    setting = "change a key of all recipes, such as data.image_size=96"
    compare.argument("--set", "KEY=VALUE", setting, action="append", default=[])
    compare.path("--out", "DIR", "folder to write the comparison to")


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
        out=args.out,
        on_progress=say,
    )
    say(f"\n{format_comparison(found)}")
