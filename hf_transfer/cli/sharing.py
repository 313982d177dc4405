"""Commands that show and share what there is: push, demo, cache, completion."""

from __future__ import annotations

import argparse
from typing import Any

from hf_transfer.base.console import interrupted_twice, say, warn
from hf_transfer.base.errors import UserError
from hf_transfer.cli.arguments import MODEL, command


def add(commands: Any) -> None:
    """Add the commands that show and share what there is."""
    push = command(commands, "push", _push, "upload a run's model and card to the Hub")
    push.path("run", "RUN", "folder of a finished run, or a model folder")
    push.argument("repo_id", "REPO", "repository, as OWNER/NAME")
    push.flag("--private", "make the repository private")
    push.flag("--space", "also make a Space of that name that shows the model")
    push.flag("--pr", "open a pull request instead of committing to the branch")
    push.argument("--revision", "BRANCH", "branch to push to, made if missing (default: main)")
    push.argument("--license", "NAME", "licence for the card (default: the backbone's)")
    push.argument(
        "--language",
        "CODE",
        "language of the labels, such as en; may be repeated",
        action="append",
    )
    push.argument("--message", "TEXT", "commit message")

    words = "try models in the browser, and train your own"
    demo = command(commands, "demo", _demo, words, loads=True, first=_check_models)
    demo.path("models", "MODEL", f"{MODEL}; several are shown side by side", nargs="*")
    own = "network that can be trained, besides those in the Hub's cache; may be repeated"
    demo.argument("--backbone", "ID", own, action="append", default=[])
    demo.argument("--port", "N", "port (default: the first free one)", type=int)

    cache = command(commands, "cache", _cache, "list or clear cached pixels and features")
    cache.argument("keys", "KEY", "first characters of the entries' keys (default: all)", nargs="*")
    cache.flag("--clear", "remove entries that are not in use")
    cache.flag("--json", "print JSON instead of text")

    words = "print a script that completes commands, options and paths in a shell"
    completion = command(commands, "completion", _completion, words)
    completion.argument("shell", "SHELL", "bash, zsh or fish", choices=("bash", "zsh", "fish"))


def _push(args: argparse.Namespace) -> None:
    keys = ("private", "license", "language", "message")
    options = {key: getattr(args, key) for key in keys} | {"announce": warn}
    if args.space:
        if args.pr or args.revision:
            raise UserError("--space cannot be combined with --pr or --revision")
        from hf_transfer.space.deploy import push_space

        with interrupted_twice():
            return say(push_space(args.run, args.repo_id, **options))
    from hf_transfer.serving.hub import push

    with interrupted_twice():
        say(push(args.run, args.repo_id, pr=args.pr, revision=args.revision, **options))


def _check_models(args: argparse.Namespace) -> None:
    """Raise UserError for what is no model."""
    from hf_transfer.serving.hub import model_folder

    for model in args.models:
        model_folder(model)


def _demo(args: argparse.Namespace) -> None:
    from hf_transfer.space.app import demo

    demo(*args.models, port=args.port, backbones=args.backbone, announce=say)


def _cache(args: argparse.Namespace) -> None:
    from hf_transfer.base.cache import cache_report

    say(cache_report(args.keys, clear=args.clear, as_json=args.json), not args.json)


def _completion(args: argparse.Namespace) -> None:
    import shtab

    from hf_transfer.base.console import place
    from hf_transfer.cli import parser

    made = parser()
    commands: Any = next(each.choices for each in made._actions if isinstance(each.choices, dict))
    for one in commands.values():
        for argument in one._actions:
            if argument.type is place:
                argument.complete = shtab.FILE
    print(shtab.complete(made, shell=args.shell))
