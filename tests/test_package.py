"""The package as a whole: its public names, what importing it costs, what it must not import."""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_transfer

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "timm", "torchvision", "datasets", "gradio", "evaluate")


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout


def test_help_says_what_each_argument_is() -> None:
    for name in hf_transfer.__all__:
        function = getattr(hf_transfer, name)
        if inspect.isfunction(function):
            told = inspect.getdoc(function) or ""
            assert [
                each for each in inspect.signature(function).parameters if each not in told
            ] == []


def test_the_public_names_are_these_and_all_resolve():
    assert hf_transfer.__all__ == sorted(hf_transfer.__all__)
    assert set(hf_transfer.__all__) == set(hf_transfer._WHERE)
    assert all(getattr(hf_transfer, name) is not None for name in hf_transfer.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_transfer.nothing


LIGHT = ("base", "recipe", "planning", "data", "results")


def test_the_light_rooms_and_the_command_line_import_nothing_heavy():
    modules = ["hf_transfer", "hf_transfer.cli", "hf_transfer.plans"]
    for room in LIGHT:
        for path in sorted((ROOT / "hf_transfer" / room).rglob("*.py")):
            if path.name != "evaluate_module.py":  # loaded by evaluate alone
                modules.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    code = f"import sys, {', '.join(modules)}; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_an_installation_mixed_with_the_downloader_is_named(tmp_path):
    package = tmp_path / "hf_transfer"
    shutil.copytree(ROOT / "hf_transfer", package, ignore=shutil.ignore_patterns("recorded"))
    (package / "hf_transfer.abi3.so").touch()
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
         "import hf_transfer"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 1
    assert "pip uninstall -y hf_transfer" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("first_file", [None, "print('a downloader')\n"])
def test_the_command_tells_of_the_downloader_in_one_line(first_file, tmp_path):
    """Also where the downloader's own first file lies over ours."""
    package = tmp_path / "hf_transfer"
    shutil.copytree(ROOT / "hf_transfer", package, ignore=shutil.ignore_patterns("recorded"))
    if first_file is None:
        (package / "hf_transfer.abi3.so").touch()
    else:
        (package / "__init__.py").write_text(first_file)
    command = tmp_path / "hf-transfer"
    command.write_text("import sys\nfrom hf_transfer.cli import main\nsys.exit(main())\n")
    for words in (["-m", "hf_transfer"], [str(command)]):
        result = subprocess.run(
            [sys.executable, *words, "recipes"],
            capture_output=True, text=True, timeout=60, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("hf-transfer: error: the distribution 'hf_transfer' (a downloader)")
        assert line.endswith("--no-deps hf-transfer-learning")


def test_the_package_is_eleven_rooms_and_the_command_line_each_with_a_sign_at_its_door():
    package = ROOT / "hf_transfer"
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == {
        *LIGHT,
        "backbones",
        "inputs",
        "training",
        "serving",
        "deciding",
        "space",
        "cli",
    }
    files = {path.name for path in package.glob("*.py")}
    assert files == {"__init__.py", "__main__.py", "run.py", "plans.py", "progress.py", "demo.py"}
    for sign in package.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(sign.read_text())), sign


def test_spaces_of_the_first_version_find_what_they_import():
    """Their app.py was uploaded with 0.1.0, and their requirements take the newest version."""
    code = (
        "import hf_transfer; from hf_transfer.recipe import UserError; "
        "from hf_transfer.demo import launch; print(UserError is hf_transfer.UserError)"
    )
    assert run_python(code).strip() == "True"


def test_the_demo_is_a_function_whoever_imports_the_module_of_its_name_before_or_after():
    lines = ["from hf_transfer.demo import launch", "from hf_transfer import demo"]
    for first, second in (lines, lines[::-1]):
        code = (
            f"{first}; {second}; import hf_transfer, hf_transfer.demo; import inspect; "
            "from hf_transfer.space import app; both = demo, hf_transfer.demo, app.demo; "
            "print(len(set(map(id, both))), inspect.isfunction(demo), demo.launch is launch)"
        )
        assert run_python(code).split() == ["1", "True", "True"]


def test_no_file_of_the_project_names_a_path_of_a_machine():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60
    ).stdout.split()
    homes = re.compile("/" + "root/|/" + "work/(main|shared)")
    found = []
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".json", ".txt") and path.is_file():
            found += [name] if homes.search(path.read_text(encoding="utf-8")) else []
    assert not found


def test_the_hubs_own_command_runs_it_as_an_extension(tmp_path):
    """`hf extensions install` looks for a console script of this name, and writes this manifest."""
    scripts = Path(sys.executable).parent
    installed = tmp_path / ".local/share/hf/extensions/hf-transfer"
    installed.mkdir(parents=True)
    facts = {"owner": "o", "repo": "hf-transfer", "repo_id": "o/hf-transfer", "type": "python"}
    facts |= {"short_name": "transfer", "executable_path": str(scripts / "hf-transfer")}
    facts |= {"installed_at": "2026-01-01T00:00:00+00:00"}
    (installed / "manifest.json").write_text(json.dumps(facts))
    done = subprocess.run(
        [scripts / "hf", "transfer", "recipes", "traim"],
        env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "hf-transfer: error: there is no shipped recipe 'traim'" in done.stderr


def test_no_module_is_longer_than_350_lines():
    lengths = {path: path.read_text().count("\n") for path in (ROOT / "hf_transfer").rglob("*.py")}
    assert {path.name: count for path, count in lengths.items() if count > 350} == {}
