"""The command line: each command parses, calls one function and prints.

`main` runs a command; the other files hold the commands by kind.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import hf_transfer
from hf_transfer.base import console, threads
from hf_transfer.base.boundary import TRACEBACK
from hf_transfer.base.console import Parser
from hf_transfer.base.version import OVERWRITTEN, __version__
from hf_transfer.cli import deciding, models, sharing, training
from hf_transfer.cli.examples import epilog

HABITS = {  # words of other tools
    "auto": "train FOLDER",
    "quickstart": "train quickstart",
    "resume": "train RECIPE --out FOLDER --resume",
    **dict.fromkeys(("fit", "finetune", "fine-tune", "finetuning", "learn"), "train"),
    **dict.fromkeys(("eval", "test", "validate", "score", "benchmark"), "evaluate"),
    **dict.fromkeys(("infer", "inference", "classify", "label"), "predict"),
    **dict.fromkeys(("serve", "app", "ui", "web", "gui"), "demo"),
    **dict.fromkeys(("upload", "publish", "share", "deploy"), "push"),
    **dict.fromkeys(("info", "list", "ls", "show", "status"), "runs"),
    **dict.fromkeys(("save", "convert", "onnx"), "export"),
    **dict.fromkeys(("features", "extract"), "embed"),
    **dict.fromkeys(("models", "networks"), "backbones"),
    "help": "--help",
    "version": "--version",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status, as `finish` says."""
    words = list(sys.argv[1:] if argv is None else argv)
    with console.outputs():
        if not hasattr(hf_transfer, "_WHERE"):  # the package's first file is another's
            console.warn(f"error: {OVERWRITTEN}")
            return console.MISTAKE
        args = parser().parse(words)
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
    args.first(args)
    if not args.loads:
        return args.command(args)  # type: ignore[no-any-return]
    from hf_transfer.progress import quiet

    quiet()
    with threads.fitting():
        return args.command(args)  # type: ignore[no-any-return]


def parser() -> Parser:
    """Return the parser of all commands."""
    made = Parser(
        prog="hf-transfer",
        description="Transfer learning for image models: plan it, run it, prove it, publish it.",
        epilog="hf-transfer COMMAND --help describes a command. A RECIPE is the name of a shipped "
        "recipe (hf-transfer recipes) or the path of a YAML file.",
    )
    made.add_argument("--version", action="version", version=__version__)
    made.habits = HABITS
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for kind in (training, deciding, models, sharing):
        kind.add(commands)
    for name, command in commands.choices.items():
        command.epilog = epilog(name, made.prog)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.flag("--traceback", f"show the traceback of an error, as does {TRACEBACK}=1")
    return made
