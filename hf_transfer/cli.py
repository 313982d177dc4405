"""The command line: each command parses, calls one function and prints."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hf_transfer
from hf_transfer.base import console, launch, threads
from hf_transfer.base.boundary import TRACEBACK
from hf_transfer.base.console import Parser, count, say, width
from hf_transfer.base.errors import UserError
from hf_transfer.base.version import OVERWRITTEN, __version__

LOADING = ("predict", "evaluate", "embed", "export", "demo")  # commands that load a model
MODEL = "run folder, model folder or Hub repository"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status, as `finish` says."""
    words = list(sys.argv[1:] if argv is None else argv)
    with console.outputs():
        if not hasattr(hf_transfer, "_WHERE"):  # the package's first file is another's
            console.warn(f"error: {OVERWRITTEN}")
            return console.MISTAKE
        args = _parser().parse(words)
        if args.traceback:
            os.environ[TRACEBACK] = "1"
        threads.prepare()
        console.logs()
        try:
            return console.finish(
                lambda: _run(args), lambda: console.resuming(words) if args.resumable else None
            )
        finally:  # after the line is printed, which all that have joined print
            if processes := sys.modules.get("hf_transfer.base.processes"):  # else none has joined
                processes.leave()


def _run(args: argparse.Namespace) -> int | None:
    """Run a command; one that loads a model on the free cores, and with quiet libraries."""
    if not args.loads:
        return args.command(args)  # type: ignore[no-any-return]
    from hf_transfer.progress import quiet

    quiet()
    with threads.fitting():
        return args.command(args)  # type: ignore[no-any-return]


# --- arguments -------------------------------------------------------------------------------


def _parser() -> Parser:
    parser = Parser(
        prog="hf-transfer",
        description="Transfer learning for image models: plan it, run it, prove it, publish it.",
        epilog="hf-transfer COMMAND --help describes a command. A RECIPE is the name of a shipped "
        "recipe (hf-transfer recipes) or the path of a YAML file.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _training_commands(commands)
    _model_commands(commands)
    cache = _command(commands, "cache", _cache, "list or clear cached pixels and features")
    cache.argument("keys", "KEY", "beginnings of entries (default: all)", nargs="*")
    cache.flag("--clear", "remove entries that are not in use")
    cache.flag("--json", "print JSON instead of text")
    for name, command in commands.choices.items():
        command.flag("--traceback", f"show the traceback of an error, as does {TRACEBACK}=1")
        command.set_defaults(loads=name in LOADING)
    return parser


def _training_commands(commands: Any) -> None:
    train = _command(commands, "train", _train, "train a recipe and write a run folder")
    _recipe_arguments(train)
    train.path("--out", "DIR", "run folder (default: runs/RECIPE)")
    train.flag("--resume", "resume the run in --out")
    train.flag("--allow-code", "run the Python files that the recipe's metrics name")

    plan = _command(commands, "plan", _plan, "show what a recipe would train, without training")
    _recipe_arguments(plan)
    plan.argument("--processes", "N", "number of processes (default: 1)", type=count, default=1)

    compare = _command(commands, "compare", _compare, "compare recipes on the same images")
    compare.path("recipes", "RECIPE", "recipes (default: from scratch to full)", nargs="*")
    compare.path("--data", "PATH", "folder of class folders, or table", required=True)
    compare.path("--backbone", "ID", "timm/NAME, transformers/REPO, torchvision/NAME or a folder")
    numbers = "labelled images of each class, such as 5,20,100 (default: all)"
    compare.argument("--per-class", "N,N", numbers, type=_counts, default=())
    compare.argument("--seeds", "N", "number of seeds (default: 3)", type=count, default=3)
    setting = "change a key of all recipes, such as data.image_size=96"
    compare.argument("--set", "KEY=VALUE", setting, action="append", default=[])
    compare.path("--out", "DIR", "folder to write the comparison to")

    recipes = _command(commands, "recipes", _recipes, "list the shipped recipes, or print one")
    recipes.argument("name", "NAME", "recipe to print", nargs="?")
    recipes.flag("--schema", "print the JSON schema of recipes, for editors")

    groups = _command(commands, "groups", _groups, "show the layer groups of a backbone")
    groups.path("backbone", "BACKBONE", "such as timm/resnet50", nargs="?")
    grains = ("blocks", "stages")
    groups.argument("--grain", None, "what makes a group (default: blocks)", choices=grains)
    groups.flag("--all", "group every known architecture")
    groups.path("--out", "FILE", "table to write with --all: .csv or .md")


def _model_commands(commands: Any) -> None:
    predict = _command(commands, "predict", _predict, "label images with a trained model")
    predict.path("model", "MODEL", MODEL)
    images = "files, folders or patterns; - reads paths from standard input, one a line"
    predict.path("images", "IMAGE", images, nargs="+")
    predict.argument("--top", "N", "number of labels to show (default: 3 classes)", type=count)
    at_once = "images in a batch (default: 32; 1 answers each path of standard input at once)"
    predict.argument("--batch-size", "N", at_once, type=count, default=32)
    forms = ("text", "json", "jsonl", "csv")
    predict.argument("--format", None, "form of the output (default: text)", choices=forms)
    predict.flag("--json", "the same as --format json")

    evaluate = _command(commands, "evaluate", _evaluate, "score a model on labelled images")
    evaluate.path("model", "MODEL", MODEL)
    evaluate.path("--data", "PATH", "folder of class folders, or table", required=True)
    split = "one of the data's splits, or all (default: test if there is one)"
    evaluate.argument("--split", "NAME", split)
    evaluate.path("--compare", "MODEL", "second model to compare with, by a paired test")
    sure = "smallest probability of an answer that counts; of several labels: that is present"
    evaluate.argument("--threshold", "P", sure, type=float)
    evaluate.flag("--tta", "average with the mirror image")
    evaluate.flag("--json", "print JSON instead of text")

    embed = _command(commands, "embed", _embed, "turn images into features, or find similar ones")
    embed.path("model", "MODEL", MODEL)
    embed.path("images", "IMAGE", "files, folders or patterns", nargs="+")
    embed.path("--out", "FILE", "features to write: .npy or .parquet")
    embed.path("--near", "IMAGE", "image to find the most similar ones of")
    embed.argument("--top", "N", "number of similar images (default: 10)", type=count, default=10)

    export = _command(commands, "export", _export, "write a model for ONNX Runtime or torch alone")
    export.path("model", "MODEL", MODEL)
    export.argument("--to", None, "form to write (default: onnx)", choices=("onnx", "torch"))
    export.path("--out", "FILE", "file (default: the model's name, .onnx or .pt2)")

    push = _command(commands, "push", _push, "upload a run's model and card to the Hub")
    push.path("run", "RUN", "folder of a finished run")
    push.argument("repo", "REPO", "repository, as OWNER/NAME")
    push.flag("--private", "make the repository private")

    demo = _command(commands, "demo", _demo, "try a model in the browser")
    demo.path("model", "MODEL", MODEL, nargs="?", default=".")
    demo.argument("--port", "N", "port (default: the first free one)", type=int)


def _command(commands: Any, name: str, call: Callable[..., Any], words: str) -> Parser:
    description = f"{words[0].upper()}{words[1:]}."
    command: Parser = commands.add_parser(name, help=words, description=description)
    command.set_defaults(command=call, parser=command, resumable=False)
    return command


def _recipe_arguments(command: Parser) -> None:
    command.path("recipe", "RECIPE", "shipped recipe, or YAML file")
    data = "folder of class folders, table (CSV, JSON Lines, Parquet) or data set on the Hub"
    command.path("--data", "PATH", data)
    command.path("--backbone", "ID", "timm/NAME, transformers/REPO, torchvision/NAME or a folder")
    command.argument("--seed", "N", "seed (default: the recipe's)", type=int)
    setting = "change a key of the recipe, such as phases.0.lr=1e-4"
    command.argument("--set", "KEY=VALUE", setting, action="append", default=[])


def _load(args: argparse.Namespace, allow_code: bool = True) -> Any:
    """Return the recipe with what the command line changes in it."""
    from hf_transfer.recipe.load import asked

    return asked(args.recipe, args.data, args.backbone, args.seed, args.set, allow_code)


# --- commands --------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> None:
    from hf_transfer.plans import plans_text
    from hf_transfer.results.run_folder import check_folder

    launch.check()
    recipe = _load(args, args.allow_code)
    out = Path(args.out or Path("runs") / recipe.name)
    if recipe.compare is not None:
        return _quickstart(args, recipe, out)
    args.resumable = True
    check_folder(out, recipe, args.resume)
    if launch.is_main():
        logging.getLogger("hf_transfer").setLevel(logging.INFO)
        say(plans_text(recipe, launch.count(), width()))
    from hf_transfer.progress import EpochLines, TrainingBar, quiet, summary
    from hf_transfer.run import run

    quiet()
    report = run(recipe, out, resume=args.resume, callbacks=[EpochLines(say), TrainingBar()])
    say(f"{summary(report)}\nwritten to {out}: report.html, report.json, model/")


def _quickstart(args: argparse.Namespace, recipe: Any, out: Path) -> None:
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


def _counts(text: str) -> tuple[int, ...]:
    """Return numbers given on the command line with commas between them."""
    return tuple(count(part.strip()) for part in text.split(","))


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


def _plan(args: argparse.Namespace) -> None:
    from hf_transfer.plans import plans_text

    say(plans_text(_load(args), args.processes, width()))


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


def _predict(args: argparse.Namespace) -> int:
    from hf_transfer.serving.answers import Answers

    from_input = args.images == ["-"]
    images = (line.rstrip("\r\n") for line in sys.stdin) if from_input else args.images
    form = "json" if args.json else args.format or "text"
    found = Answers(args.model, images, form, args.top, args.batch_size)
    for line in found:
        print(line, flush=from_input)
    return 2 if found.failed else 0


def _evaluate(args: argparse.Namespace) -> None:
    from hf_transfer.serving.evaluate import evaluate
    from hf_transfer.serving.evaluate_text import format_evaluation

    options = {key: getattr(args, key) for key in ("split", "compare", "threshold", "tta")}
    found = evaluate(args.model, args.data, **options)
    say(json.dumps(found, indent=1) if args.json else format_evaluation(found), not args.json)


def _embed(args: argparse.Namespace) -> int:
    from hf_transfer.serving.embed import embed_to

    found, errors = embed_to(args.model, args.images, args.out, args.near, args.top)
    say("\n".join(found))
    for error in errors:
        console.warn(f"left out: {error}")
    return 2 if errors else 0


def _export(args: argparse.Namespace) -> None:
    from hf_transfer.serving.export import export_to

    say("\n".join(export_to(args.model, args.to or "onnx", args.out)))


def _push(args: argparse.Namespace) -> None:
    from hf_transfer.serving.hub import push

    say(push(args.run, args.repo, private=args.private))


def _demo(args: argparse.Namespace) -> None:
    from hf_transfer.serving.demo import launch as serve

    serve(args.model, port=args.port, announce=say)


def _cache(args: argparse.Namespace) -> None:
    from hf_transfer.base.cache import cache_report

    say(cache_report(args.keys, clear=args.clear, as_json=args.json), not args.json)
