"""Commands that use a finished model: predict, evaluate, embed, explain, export."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from hf_transfer.base import console
from hf_transfer.base.console import count, say, whole
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import expanded
from hf_transfer.cli.arguments import MODEL, MODEL_OR_FILE, command, data_of
from hf_transfer.serving.runtimes import OTHERS, SUFFIXES, refusal

TTA = (
    "average the answers for each image and its mirror image, or do not (default: as saved with "
    "the model)"
)


def add(commands: Any) -> None:
    """Add the commands that use a finished model."""
    for add_one in (_add_predict, _add_evaluate, _add_embed, _add_explain, _add_export):
        add_one(commands)


def _add_predict(commands: Any) -> None:
    words = "label images with a trained model"
    predict = command(commands, "predict", _predict, words, loads=True, first=_check_model)
    predict.path("model", "MODEL", MODEL_OR_FILE)
    images = (
        "files, folders, patterns or tables; - reads paths from standard input, one a line or as "
        "find -print0 writes them"
    )
    predict.path("images", "IMAGE", images, nargs="+")
    predict.argument("--top", "N", "number of labels to show (default: 3 classes)", type=count)
    at_once = (
        "images in a batch (default: 32; with 1, jsonl and csv answer each path of standard input "
        "at once)"
    )
    predict.argument("--batch-size", "N", at_once, type=count, default=32)
    predict.either("--tta", TTA)
    decoding = "processes that decode images (default: 0, threads of this process)"
    predict.argument("--workers", "N", decoding, type=whole, default=0)
    predict.flag("--unknown", "say which images are unlike anything in training")
    forms = ("text", "json", "jsonl", "csv")
    predict.argument("--format", None, "format of the output (default: text)", choices=forms)
    predict.flag("--json", "the same as --format json")


def _add_evaluate(commands: Any) -> None:
    words = "score a model on labelled images"
    evaluate = command(commands, "evaluate", _evaluate, words, loads=True, first=_check_model)
    evaluate.path("model", "MODEL", MODEL_OR_FILE)
    evaluate.path("--data", "PATH", "folder of class folders, or table", required=True)
    setting = "change a key of the data, such as data.label_column=species"
    evaluate.argument("--set", "KEY=VALUE", setting, action="append", default=[])
    split = "one of the data's splits, or all (default: test if there is one)"
    evaluate.argument("--split", "NAME", split)
    evaluate.path("--compare", "MODEL", "second model to compare with, by a paired test")
    sure = "least probability for an answer to count, or with several labels for one to be present"
    evaluate.argument("--threshold", "P", sure, type=float)
    evaluate.either("--tta", TTA)
    evaluate.flag("--unknown", "count images that are unlike anything in training")
    grouped = "column of the table, or pattern on file names with one group, such as '^(\\d+)_'"
    evaluate.argument("--group", "NAME", f"also score each group of images: {grouped}")
    evaluate.path("--out", "DIR", "folder to write evaluation.json and the page report.html to")
    evaluate.argument(
        "--batch-size", "N", "images in a batch (default: 32)", type=count, default=32
    )
    evaluate.flag("--no-images", "leave images out of the page")
    evaluate.flag("--json", "print JSON instead of text")


def _add_embed(commands: Any) -> None:
    words = "turn images into features, or find similar ones"
    embed = command(commands, "embed", _embed, words, loads=True, first=_check_model)
    embed.path("model", "MODEL", MODEL)
    embed.path("images", "IMAGE", "files, folders, patterns or tables", nargs="+")
    written = "features to write: .npy, .parquet, or without a suffix a folder of datasets"
    embed.path("--out", "FILE", written)
    arriving = "group at which the features are taken, as hf-transfer groups names it"
    embed.argument("--group", "NAME", f"{arriving} (default: the head)")
    embed.path("--near", "IMAGE", "image to find the most similar images to")
    embed.argument("--top", "N", "number of similar images (default: 10)", type=count, default=10)
    embed.argument("--batch-size", "N", "images in a batch (default: 32)", type=count, default=32)


def _add_explain(commands: Any) -> None:
    words = "show where in images a model sees a label"
    explain = command(commands, "explain", _explain, words, loads=True, first=_check_model)
    explain.path("model", "MODEL", MODEL)
    explain.path("images", "IMAGE", "files, folders, patterns or tables", nargs="+")
    label = "label to explain; may be repeated (default: the likeliest of each image)"
    explain.argument("--label", "NAME", label, action="append")
    written = "folder for the heat maps as PNG files (default: heat-maps)"
    explain.path("--out", "DIR", written, default="heat-maps")
    explain.argument("--batch-size", "N", "images in a batch (default: 16)", type=count, default=16)


def _add_export(commands: Any) -> None:
    words = "write a model as a file for another runtime"
    export = command(commands, "export", _export, words, loads=True, first=_check_model)
    export.path("model", "MODEL", MODEL)
    form = "format of the file (default: onnx)"
    export.argument("--to", None, form, type=_runtime, choices=tuple(SUFFIXES))
    export.flag("--half", "weights of 16 bits")
    export.flag("--int8", "weights and activations of 8 bits, for ONNX Runtime; needs --data")
    inside = "take images of any size: resizing and cutting are inside the file; for onnx"
    export.flag("--resize", inside)
    export.path("--data", "PATH", "labelled images like those of training, to calibrate --int8 on")
    setting = "change a key of the data, such as data.label_column=species"
    export.argument("--set", "KEY=VALUE", setting, action="append", default=[])
    export.path("--out", "FILE", "file (default: the model's name with .onnx, .pt2, .xml or .pte)")


def _check_model(args: argparse.Namespace) -> None:
    """Raise UserError for what is no model, and for data that is not there."""
    from hf_transfer.backbones.origins import check_model
    from hf_transfer.data.sources import check_place

    for model in filter(None, (args.model, getattr(args, "compare", None))):
        if not model.lower().endswith(SUFFIXES["onnx"]):
            check_model(model)
        elif not expanded(model).is_file():
            raise UserError(f"there is no file {model}; write one with hf-transfer export")
    if data := getattr(args, "data", None):
        check_place(data)


def _predict(args: argparse.Namespace) -> int:
    if args.json and args.format not in (None, "json"):
        raise UserError(f"--json is --format json, not --format {args.format}; remove one of them")
    from hf_transfer.serving.answers import Answers

    from_input = "-" in args.images
    images = _with_input(args.images) if from_input else args.images
    form = "json" if args.json else args.format or "text"
    keys = ("top", "batch_size", "unknown", "tta", "workers")
    found = Answers(args.model, images, form, **{key: getattr(args, key) for key in keys})
    for line in found:
        print(line, flush=from_input)
    if from_input and not found.answered:
        console.warn("no paths on standard input")
    return 2 if found.failed else 0


def _with_input(paths: list[str]) -> Iterator[str]:
    """Yield paths, and in the place of - those that come on standard input, of any encoding."""
    for path in paths:
        if path != "-":
            yield path
            continue
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        first = sys.stdin.readline()
        if "\0" in first:  # as find -print0 writes names, which may hold line breaks
            lines: Iterable[str] = f"{first}{sys.stdin.read()}".split("\0")
        else:
            lines = (line.rstrip("\r\n") for line in chain((first,), sys.stdin))
        yield from filter(None, lines)


def _evaluate(args: argparse.Namespace) -> None:
    from hf_transfer.serving.evaluate import evaluate
    from hf_transfer.serving.evaluate_text import format_evaluation

    keys = ("split", "compare", "threshold", "tta", "unknown", "group", "out", "batch_size")
    options = {key: getattr(args, key) for key in keys}
    options["page_images"] = False if args.no_images else None
    found = evaluate(args.model, data_of(args.data, args.set), **options)
    say(json.dumps(found, indent=1) if args.json else format_evaluation(found), not args.json)
    if args.out and not args.json:
        say(f"written to {args.out}: report.html, evaluation.json")


def _embed(args: argparse.Namespace) -> int:
    from hf_transfer.serving.embed import embed_to

    options = {key: getattr(args, key) for key in ("out", "near", "top", "group", "batch_size")}
    found, errors = embed_to(args.model, args.images, **options)
    say("\n".join(found))
    for error in errors:
        console.warn(f"left out: {error}")
    return 2 if errors else 0


def _explain(args: argparse.Namespace) -> int:
    from hf_transfer.serving.explain import explain_to

    found, errors = explain_to(args.model, args.images, args.out, args.label, args.batch_size)
    say("\n".join(found))
    for error in errors:
        console.warn(f"left out: {error}")
    return 2 if errors else 0


def _runtime(word: str) -> str:
    """Return a runtime. Raises ArgumentTypeError for one that others serve."""
    if word.lower() in OTHERS:
        raise argparse.ArgumentTypeError(refusal(word))
    return word


def _export(args: argparse.Namespace) -> None:
    from hf_transfer.serving.export import export_to

    options = {key: getattr(args, key) for key in ("half", "int8", "resize")}
    options["data"] = args.data and data_of(args.data, args.set)
    say("\n".join(export_to(args.model, args.to or "onnx", args.out, **options)))
