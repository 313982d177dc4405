"""What helps at a terminal: examples in every help, completion, and `hf transfer`."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from hf_transfer.base import console
from hf_transfer.cli import main, parser
from hf_transfer.cli.examples import EXAMPLES

CALL = "import sys; from hf_transfer.cli import main; sys.exit(main())"


def commands() -> dict[str, Any]:
    return next(each.choices for each in parser()._actions if isinstance(each.choices, dict))


@pytest.mark.parametrize("command", commands())
def test_every_help_ends_with_examples_that_the_command_line_takes(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    told = capsys.readouterr().out
    assert EXAMPLES[command]
    for example in EXAMPLES[command]:
        assert f"  hf-transfer {example}\n" in told
        words = shlex.split(example.partition(" > ")[0])
        assert parser().parse(words).parser.prog == f"hf-transfer {command}"


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
