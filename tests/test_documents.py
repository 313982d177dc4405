"""The documents: every block runs as it stands, links lead somewhere, every command exists."""

import json
import os
import re
from pathlib import Path

import pytest
from children import python
from drawn import photos
from hub_server import TOKEN, Repository, serve
from run_documents import blocks, shrink
from timm.models import _registry

from hf_transfer import load_backbone, save_model
from hf_transfer.cli import parser
from hf_transfer.recipe.reference import keys_markdown

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOK = ROOT / "docs" / "from-photos-to-a-shared-model.ipynb"
# In the order in which a reader takes them: the first leaves the run that others look at.
ORDER = [README, *sorted(PAGES, key=lambda page: page.stem != "getting-started"), NOTEBOOK]
BACKBONE = "timm/resnet18.a1_in1k"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub that has the backbone of the documents, as the pages are run with it: thin, with random
    weights."""
    folder = tmp_path_factory.mktemp("backbone")
    labels = [str(i) for i in range(1000)]
    with pytest.MonkeyPatch.context() as patch:
        for known in (_registry._model_pretrained_cfgs, _registry._model_entrypoints):
            for name in ("resnet18", "resnet18.a1_in1k"):
                if name in known:
                    patch.setitem(known, name, known[name])  # given back afterwards
        shrink()
        save_model(load_backbone("timm/resnet18", labels, pretrained=False), folder)
    with serve() as hub:
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.repositories[BACKBONE] = Repository()
        hub.repositories[BACKBONE].commit("weights", files)
        yield hub


def read(hub, folder: Path, pages: list[Path]) -> dict[str, list[dict]]:
    """Run pages in a reader's folder; return what came of each block, by page."""
    photos(folder / "flowers", classes=("daisy", "rose", "tulip"), count=9, size=64)
    env = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / ".home"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }  # fmt: skip
    code = "import run_documents, sys\nrun_documents.main(*sys.argv[1:])"
    done = python(code, *map(str, pages), folder=folder, env=env)
    assert done.returncode == 0, done.stderr
    rows: dict[str, list[dict]] = {page.name: [] for page in pages}
    for line in done.stdout.splitlines():
        row = json.loads(line)
        rows[row["page"]].append(row)
    return rows


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The folder of a reader who goes through all pages."""
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="module")
def docs_read(hub, reader):
    return read(hub, reader, ORDER)


def failures(rows: list[dict]) -> str:
    return "\n".join(
        f"block {row['block']} ({row['language']}):\n{row['said']}\n{row['failure']}"
        for row in rows
        if row["failure"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", ORDER, ids=lambda path: path.stem)
def test_every_block_of_a_page_runs_as_it_stands(docs_read, page):
    rows = docs_read[page.name]
    assert len(rows) == len(blocks(page))
    assert not failures(rows), failures(rows)


def test_the_readmes_model_is_there_and_was_published(docs_read, reader, hub):
    assert (reader / "flowers-model" / "model.safetensors").is_file()
    assert "alice/flowers" in hub.repositories


def test_the_notebook_is_stored_without_what_one_machine_answered(docs_read):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    said = "".join(row["said"] for row in docs_read[NOTEBOOK.name])
    assert "accuracy 0." in said
    assert "alice/my-first-model" in said


def test_the_readme_is_short_and_its_code_comes_first():
    text = README.read_text(encoding="utf-8")
    assert text.count("\n") <= 200
    assert len(text.split()) <= 1400
    assert len(text[: text.index("```")].split()) <= 60


@pytest.mark.parametrize(
    "page", [README, *PAGES, NOTEBOOK, ROOT / "CONTRIBUTING.md"], ids=lambda p: p.stem
)
def test_every_link_to_a_file_leads_to_one(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, part = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if part:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.M)
            slugs = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
            assert part in slugs, f"{page.name} links to {target}"


def test_every_command_and_recipe_that_a_document_names_exists():
    known = parser()._subparsers._group_actions[0].choices
    text = "\n".join(page.read_text(encoding="utf-8") for page in [README, *PAGES])
    named = set(re.findall(r"hf-transfer ([a-z]+)\b", text))
    assert named
    assert not named - set(known)
    shipped = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    used = set(re.findall(r"hf-transfer (?:plan|train)\s+(\w+)(?![\w./])", text))
    assert not used - shipped - {"mine", "auto", "FOLDER", "flowers", "more_photos"}


def test_the_page_of_recipe_keys_is_what_recipes_are_checked_by():
    page = (ROOT / "docs" / "recipe-keys.md").read_text(encoding="utf-8")
    assert page.rstrip().endswith(keys_markdown().strip()), (
        "write it again: everything after the introduction is keys_markdown()"
    )
