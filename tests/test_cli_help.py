"""What helps at a terminal: examples in every help, completion, and `hf transfer`."""

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

import hf_transfer
from hf_transfer.base import console
from hf_transfer.cli import main, parser
from hf_transfer.cli.examples import EXAMPLES

CALL = "import sys; from hf_transfer.cli import main; sys.exit(main())"


def commands() -> dict[str, Any]:
    return next(each.choices for each in parser()._actions if isinstance(each.choices, dict))


@pytest.mark.parametrize("command", commands())
def test_every_help_fits_a_terminal_and_ends_with_examples_that_work(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if len(line) > 80] == []
    assert EXAMPLES[command]
    unfolded = re.sub(r" \\\n +", " ", told)  # a long one is folded as a shell reads it
    for example in EXAMPLES[command]:
        assert f"  hf-transfer {example}\n" in f"{unfolded}\n"
        words = shlex.split(example.partition(" > ")[0])
        assert parser().parse(words).parser.prog == f"hf-transfer {command}"


# What a function calls otherwise than the command line does, and what only one of them has.
OTHERWISE = {"set": "overrides", "no_images": "page_images", "no_refit": "refit", "add": "run"}
OTHERWISE |= {"demo.backbone": "backbones", "evaluate.set": "data", "export.set": "data"}
OF_PYTHON = {"callbacks", "on_progress", "announce", "token", "keep", "threads", "check"}
OF_PYTHON |= {"host", "examples", "limits", "wait", "page_images"}
OF_TERMINAL = {
    "format",
    "json",
    "traceback",
    "help",
    "report_to",
    "push_to",
    "space",
    "near",
    "top",
}
FUNCTIONS = ("plan", "train", "advise", "compare", "evaluate", "predict", "embed", "explain",
             "export", "push", "demo")  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_command_and_the_function_of_its_name_have_the_same_words_for_arguments(name):
    also = ("auto", "add_images") if name == "train" else ()  # what train does with a folder, --add
    known = {
        word
        for each in (name, *also)
        for word in inspect.signature(getattr(hf_transfer, each)).parameters
    }
    words = {action.dest for action in commands()[name]._actions}
    words = {OTHERWISE.get(f"{name}.{word}", OTHERWISE.get(word, word)) for word in words}
    assert words - known - OF_TERMINAL == set()
    assert known - words - OF_PYTHON == set()


@pytest.mark.parametrize("name", [*FUNCTIONS, "auto", "add_images", "list_backbones"])
def test_the_help_of_a_function_tells_of_each_argument(name):
    call = getattr(hf_transfer, name)
    told = inspect.getdoc(call)
    arguments = inspect.signature(call).parameters
    assert [word for word in arguments if not re.search(rf"\b{word}\b", told)] == []


def test_there_are_examples_of_no_command_that_is_gone():
    assert set(EXAMPLES) <= set(commands())


def test_bash_completes_commands_options_and_choices(capsys):
    if not (bash := shutil.which("bash")):
        pytest.skip("bash is not here")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def completed(*words: str) -> list[str]:
        ask = f"COMP_WORDS=({shlex.join(words)} ''); COMP_CWORD={len(words)}\n"
        ask = ask.replace(" '')", ")") if words[-1].startswith("-") else ask
        ask = ask.replace(f"CWORD={len(words)}", f"CWORD={len(words) - words[-1].startswith('-')}")
        code = f"{script}\n{ask}_shtab_hf_transfer; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        return subprocess.run([bash, "-c", code], capture_output=True, text=True).stdout.split()

    assert set(commands()) <= set(completed("hf-transfer"))
    assert "--unknown" in completed("hf-transfer", "predict", "--")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_with_every_command(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in commands())


def test_the_hub_client_runs_it_as_an_extension(tmp_path):
    """`hf extensions install OWNER/hf-transfer` leaves a manifest that leads to our command."""
    own = tmp_path / "hf-transfer"
    own.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(CALL)} "$@"\n')
    own.chmod(0o755)
    folder = tmp_path / ".local" / "share" / "hf" / "extensions" / "hf-transfer"
    folder.mkdir(parents=True)
    now = datetime.now(timezone.utc).isoformat()
    manifest = {
        "owner": "alice", "repo": "hf-transfer", "repo_id": "alice/hf-transfer",
        "short_name": "transfer", "executable_path": str(own), "type": "python",
        "installed_at": now,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    env = {**os.environ, "HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    hf = Path(sys.executable).with_name("hf")
    command = [str(hf)] if hf.exists() else [sys.executable, "-m", "huggingface_hub.cli.hf"]
    done = subprocess.run(
        [*command, "transfer", "recipes"], env=env, capture_output=True, text=True, timeout=60
    )
    assert "lp_ft" in done.stdout, done.stderr
    assert console.PROGRAM == "hf-transfer"
