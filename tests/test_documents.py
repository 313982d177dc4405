"""The README: its code runs as it stands there, and its commands are those of the program."""

import re
from pathlib import Path

import pytest
from drawn import photos

from hf_transfer import load_backbone, save_model
from hf_transfer.cli import _parser

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.S | re.M)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with what the README's code reads: flowers/ and resnet10t/."""
    photos(tmp_path / "flowers", classes=("daisy", "rose"), count=10)
    model = load_backbone("timm/test_resnet", ["a", "b", "c"], pretrained=False, image_size=32)
    save_model(model, tmp_path / "resnet10t")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_of_the_readme_runs(place):
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 14
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    assert (place / "flowers-model" / "model.safetensors").is_file()


def test_the_code_comes_within_the_first_words():
    before = README[: README.index("```")].split()
    assert len(before) <= 60


def test_every_command_of_the_readme_is_one_of_the_programs():
    commands = re.findall(r"hf-transfer ([a-z]+)", "\n".join(blocks("")))
    known = _parser()._subparsers._group_actions[0].choices
    assert commands
    assert not [command for command in commands if command not in known]
