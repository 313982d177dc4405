"""The command line: parse, call one function, print. Imports stand inside the commands."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

from hf_transfer.base import launch, threads
from hf_transfer.base.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for a user's mistake, 130 interrupted."""
    args = _parser().parse_args(argv)
    threads.prepare()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, TextIOWrapper):  # which would end a run at a name it cannot print
        sys.stdout.reconfigure(errors="backslashreplace")
    from hf_transfer.base.errors import UserError

    try:
        return int(args.command(args) or 0)
    except (UserError, OSError) as error:
        who = launch.speaker()
        for line in _lines(error) if who is not None else ():
            print(f"hf-transfer: error: {who}{line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        how = "; add --resume to go on" if args.resumable else ""
        print(f"hf-transfer: interrupted{how}", file=sys.stderr)
        return 130
    finally:  # after the line is printed, which all that have joined print
        if processes := sys.modules.get("hf_transfer.base.processes"):  # else none has joined
            processes.leave()


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, like every other mistake's."""

    def error(self, message: str) -> NoReturn:
        if not launch.is_main():
            raise SystemExit(2)
        print(f"hf-transfer: error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _lines(error: Exception) -> list[str]:
    """Return what to print of a mistake: a line each, and none that is empty."""
    if isinstance(error, OSError) and not isinstance(error, ValueError):
        where = f"{error.filename}: " if error.filename else ""
        return [f"{where}{error.strerror or error}"]
    return [line for line in str(error).splitlines() if line.strip()]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hf-transfer",
        description="Transfer learning for image models: plan it, run it, prove it, publish it.",
        epilog="A recipe is a shipped name (hf-transfer recipes) or the path of a YAML file.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    train = _command(commands, "train", _train, "train a recipe and write a run folder")
    _recipe_arguments(train)
    train.add_argument("--out", metavar="DIR", help="the run's folder (default: runs/RECIPE)")
    train.add_argument("--resume", action="store_true", help="go on where a run in --out stopped")

    plan = _command(commands, "plan", _plan, "print what a recipe would train, and train nothing")
    _recipe_arguments(plan)
    together = "how many train together (default: 1)"
    plan.add_argument("--processes", type=_count, default=1, metavar="N", help=together)

    recipes = _command(commands, "recipes", _recipes, "list the shipped recipes, or print one")
    recipes.add_argument("name", nargs="?", help="print this recipe, to copy and change it")

    groups = _command(commands, "groups", _groups, "print the layer groups of a backbone")
    groups.add_argument("backbone", nargs="?", help="timm/NAME, torchvision/NAME, … or a folder")
    groups.add_argument("--grain", choices=("blocks", "stages"), default="blocks")
    groups.add_argument("--all", action="store_true", help="group every known architecture")
    groups.add_argument("--out", metavar="FILE", help="write the table of --all (.csv or .md)")

    predict = _command(commands, "predict", _predict, "label images with a trained model")
    predict.add_argument("model", help="a run folder, a model folder or a Hub repository")
    images = "files, folders or patterns; - reads paths from standard input, one a line"
    predict.add_argument("images", nargs="+", help=images)
    shown = "labels to show (default: 3 classes)"
    predict.add_argument("--top", type=_count, metavar="N", help=shown)
    at_once = "images computed at once (default: 32; with 1 a stream of paths is answered at once)"
    predict.add_argument("--batch-size", type=_count, default=32, metavar="N", help=at_once)
    predict.add_argument("--format", choices=("text", "json", "jsonl", "csv"), default="text")
    predict.add_argument("--json", action="store_true", help="the same as --format json")

    evaluate = _command(commands, "evaluate", _evaluate, "score a model on labelled images")
    evaluate.add_argument("model", help="a run folder, a model folder or a Hub repository")
    evaluate.add_argument("--data", required=True, metavar="PATH", help="class folders or a table")
    evaluate.add_argument("--split", help="one of the data's own, or all (default: test if it has)")
    other = "another model: both on the same images, with a paired test"
    evaluate.add_argument("--compare", metavar="OTHER", help=other)
    sure = "count answers of at least this probability only; of several labels: what is present"
    evaluate.add_argument("--threshold", type=float, metavar="P", help=sure)
    evaluate.add_argument("--tta", action="store_true", help="average with the mirror image")
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of text")

    embed = _command(commands, "embed", _embed, "turn images into features, or find similar ones")
    embed.add_argument("model", help="a run folder, a model folder or a Hub repository")
    embed.add_argument("images", nargs="+", help="files, folders or patterns")
    embed.add_argument("--out", metavar="FILE", help="write features there: .npy or .parquet")
    embed.add_argument("--near", metavar="IMAGE", help="print the images most similar to this one")
    embed.add_argument("--top", type=_count, default=10, metavar="N", help="how many (default: 10)")

    export = _command(commands, "export", _export, "write a model for ONNX Runtime or torch alone")
    export.add_argument("model", help="a run folder, a model folder or a Hub repository")
    export.add_argument("--to", choices=("onnx", "torch"), default="onnx", help="default: onnx")
    export.add_argument("--out", metavar="FILE", help="default: the model's name, .onnx or .pt2")

    push = _command(commands, "push", _push, "send a run's model and card to the Hub")
    push.add_argument("run", help="a finished run folder")
    push.add_argument("repo", help="owner/name")
    push.add_argument("--private", action="store_true", help="make the repository private")

    demo = _command(commands, "demo", _demo, "try a model in the browser")
    demo.add_argument("model", nargs="?", default=".", help="a run, a model folder or a repository")
    demo.add_argument("--port", type=int, metavar="N", help="default: the first that is free")

    cache = _command(commands, "cache", _cache, "list or clear kept pixels and features")
    cache.add_argument("--clear", action="store_true", help="remove them, but what is in use")
    cache.add_argument("keys", nargs="*", metavar="KEY", help="only entries that begin so")
    cache.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


def _command(commands: Any, name: str, call: Callable[..., Any], words: str) -> Any:
    command = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    command.set_defaults(command=call, resumable=False)
    return command


def _count(text: str) -> int:
    """Return a number given on the command line that counts something: 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def _recipe_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", help="a shipped recipe's name, or the path of a YAML file")
    command.add_argument("--data", metavar="PATH", help="class folders, CSV, JSON Lines, Hub name")
    command.add_argument("--backbone", metavar="ID", help="timm/…, transformers/…, or a folder")
    command.add_argument("--seed", type=int, metavar="N")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="such as phases.0.lr=1e-4"
    )


def _load(args: argparse.Namespace) -> Any:
    """Return the recipe with what the command line changes in it."""
    from hf_transfer.recipe.load import load_recipe

    changes = {"data.path": args.data, "backbone": args.backbone, "seed": args.seed}
    given = [f"{key}={_quoted(value)}" for key, value in changes.items() if value is not None]
    return load_recipe(args.recipe, [*given, *args.set])


def _quoted(value: str | int) -> str:
    """Return a value as YAML: a text in quotes, with escapes for bytes that are not UTF-8."""
    import yaml

    if isinstance(value, int):
        return str(value)
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf).rstrip()


def _train(args: argparse.Namespace) -> None:
    launch.check()
    recipe = _load(args)
    out = Path(args.out or Path("runs") / recipe.name)
    if recipe.compare is not None:
        return _compare(args, recipe, out)
    args.resumable = True
    if launch.is_main():
        logging.getLogger("hf_transfer").setLevel(logging.INFO)
        print(_planned(recipe, launch.count()), flush=True)
    from hf_transfer.progress import EpochLines, TrainingBar, quiet, summary
    from hf_transfer.run import run

    quiet()
    report = run(recipe, out, resume=args.resume, callbacks=[EpochLines(_say), TrainingBar()])
    if launch.is_main():
        print(summary(report))
        print(f"written to {out}: report.html, report.json, model/")


def _compare(args: argparse.Namespace, recipe: Any, out: Path) -> None:
    from hf_transfer.base.errors import UserError

    if args.resume:
        raise UserError(f"recipe {recipe.name} compares, from start to end; leave --resume out")
    if launch.count() > 1:
        raise UserError(f"recipe {recipe.name} compares in one process; run it without a launcher")
    print(f"{recipe.name}: {recipe.source.backbone} learns letters, then digits ...", flush=True)
    from hf_transfer.deciding.quickstart import run_quickstart
    from hf_transfer.deciding.quickstart_text import format_quickstart
    from hf_transfer.progress import quiet

    quiet()
    print(format_quickstart(run_quickstart(recipe, out, _say)))
    print(f"\nwritten to {out}")


def _say(line: str) -> None:
    if launch.is_main():
        print(line, flush=True)


def _plan(args: argparse.Namespace) -> None:
    print(_planned(_load(args), args.processes))


def _planned(recipe: Any, processes: int) -> str:
    from hf_transfer.planning.plan_text import format_plan
    from hf_transfer.plans import plans_of

    return "\n\n".join(format_plan(plan) for plan in plans_of(recipe, processes))


def _recipes(args: argparse.Namespace) -> None:
    from hf_transfer.base.errors import UserError
    from hf_transfer.recipe.shipped import accelerate_configurations, shipped_recipes

    shipped, launching = shipped_recipes(), accelerate_configurations()
    if args.name is None:
        width = max(map(len, shipped))
        for name, path in shipped.items():
            title = path.read_text(encoding="utf-8").splitlines()[0]
            print(f"{name:{width}}  {title.partition(': ')[2]}")
        print("\nhf-transfer recipes NAME prints one, to copy and change.")
        print(
            f"For several processes there are configurations of accelerate: {', '.join(launching)}"
        )
    elif args.name in {**shipped, **launching}:
        print({**shipped, **launching}[args.name].read_text(encoding="utf-8"), end="")
    else:
        raise UserError(f"no recipe {args.name!r}; there are {', '.join(shipped)}")


def _groups(args: argparse.Namespace) -> int:
    from hf_transfer.base.errors import UserError

    if args.all:
        from hf_transfer.backbones.sweep import sweep_to

        return sweep_to(Path(args.out) if args.out else None, _say)
    if args.backbone is None:
        raise UserError("groups needs a backbone, such as timm/resnet50, or --all")
    from hf_transfer.planning.groups import group_layers, groups_text
    from hf_transfer.planning.recorded import recorded_layout

    layout = recorded_layout(args.backbone, 1000)
    if layout is None:
        from hf_transfer.backbones.origins import check_id

        check_id(args.backbone)  # before torch is imported, which takes seconds
        from hf_transfer.backbones.layouts import layout_of

        layout = layout_of(args.backbone, 1000)
    groups = group_layers(layout)
    print(groups_text(groups.grain(args.grain)))
    return 0


def _predict(args: argparse.Namespace) -> int:
    from hf_transfer.base.bars import bar
    from hf_transfer.progress import quiet
    from hf_transfer.serving.answers import lines_of
    from hf_transfer.serving.pictures import find_images
    from hf_transfer.serving.predict import iter_predictions, ready

    quiet()
    model: Any = ready(args.model)
    top = args.top or (3 if model.backbone.task == "classification" else None)
    live = args.images == ["-"]
    images: Any = (line.rstrip("\r\n") for line in sys.stdin) if live else find_images(args.images)
    failed, total = 0, None if live else len(images)

    def counted() -> Any:
        nonlocal failed
        with bar(total, "predict") as progress:
            for prediction in iter_predictions(model, images, top=top, batch_size=args.batch_size):
                failed += prediction.error is not None
                progress.update()
                yield prediction

    with threads.fitting():
        for line in lines_of(counted(), "json" if args.json else args.format, model.backbone, top):
            print(line, flush=live)
    return 2 if failed else 0


def _evaluate(args: argparse.Namespace) -> None:
    from hf_transfer.progress import quiet
    from hf_transfer.serving.evaluate import evaluate
    from hf_transfer.serving.evaluate_text import format_evaluation

    quiet()
    options = {key: getattr(args, key) for key in ("split", "compare", "threshold", "tta")}
    with threads.fitting():
        found = evaluate(args.model, args.data, **options)
    print(json.dumps(found, indent=1) if args.json else format_evaluation(found))


def _embed(args: argparse.Namespace) -> int:
    from hf_transfer.progress import quiet
    from hf_transfer.serving.embed import embed_to

    quiet()
    with threads.fitting():
        found, errors = embed_to(args.model, args.images, args.out, args.near, args.top)
    print("\n".join(found))
    for error in errors:
        print(f"hf-transfer: left out: {error}", file=sys.stderr)
    return 2 if errors else 0


def _export(args: argparse.Namespace) -> None:
    from hf_transfer.progress import quiet
    from hf_transfer.serving.export import export_to

    quiet()
    print("\n".join(export_to(args.model, args.to, args.out)))


def _cache(args: argparse.Namespace) -> None:
    from hf_transfer.base.cache import cache_report

    print(cache_report(args.keys, clear=args.clear, as_json=args.json))


def _push(args: argparse.Namespace) -> None:
    from hf_transfer.serving.hub import push

    print(push(args.run, args.repo, private=args.private))


def _demo(args: argparse.Namespace) -> None:
    from hf_transfer.progress import quiet
    from hf_transfer.serving.demo import launch

    quiet()
    launch(args.model, port=args.port, announce=_say)
