"""The package as a whole: its public names, what importing it costs, what it must not import."""

import ast
import re
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


def test_the_public_names_are_these_and_all_resolve():
    assert hf_transfer.__all__ == sorted(hf_transfer.__all__)
    assert set(hf_transfer.__all__) == set(hf_transfer._WHERE)
    assert all(getattr(hf_transfer, name) is not None for name in hf_transfer.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_transfer.nothing


@pytest.mark.parametrize(
    "module",
    ["hf_transfer", *(f"hf_transfer.{name}" for name in
     ("recipe", "groups", "phases", "rates", "plan", "metrics", "report", "card", "sources",
      "recorded", "cli"))],
)  # fmt: skip
def test_the_light_modules_import_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_an_installation_mixed_with_the_downloader_is_named(tmp_path):
    package = tmp_path / "hf_transfer"
    package.mkdir()
    (package / "__init__.py").write_text((ROOT / "hf_transfer" / "__init__.py").read_text())
    (package / "hf_transfer.abi3.so").touch()
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
         "import hf_transfer"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 1
    assert "pip uninstall -y hf_transfer" in result.stderr.splitlines()[-1]


def test_the_file_tree_in_the_readme_names_every_module():
    readme = (ROOT / "README.md").read_text()
    tree = readme[readme.index("## The files") :]
    modules = [path.name for path in (ROOT / "hf_transfer").glob("*.py")]
    missing = [name for name in modules if not re.search(rf"\b{re.escape(name)}\b", tree)]
    assert not missing


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


def test_imports_go_down_the_readmes_list_only():
    readme = (ROOT / "README.md").read_text()
    listed = re.findall(r"^  (\w+)\.py", readme.partition("## The files")[2], re.M)
    place = {name: i for i, name in enumerate(listed)}
    first = {"__init__", "__main__", "cli", "progress", "run"}  # where reading starts
    upward = [
        f"{name} imports {other}, which is listed below it"
        for name in listed
        if name not in first
        for other in imported(ROOT / "hf_transfer" / f"{name}.py")
        if other in place and place[other] > place[name]
    ]
    assert upward == []


def imported(path):
    """Return the modules of ours that a file imports at its top level."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_transfer"):
            package, _, module = node.module.partition(".")
            found |= {module} if module else {alias.name for alias in node.names}
    return found
