"""Runs the blocks of documents and notebooks as a reader would: one page after the other.

Started by test_documents.py in a process of its own, in the folder of a reader who has a folder
`flowers/` of photos, with HF_ENDPOINT at a small local Hub. Prints one JSON line per block.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import json
import re
import shlex
import traceback
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.S | re.M)
trained: list[list[str]] = []
SAVED = re.compile(r"\s*Save it as `([\w.-]+)`")


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return (language, code, the text right behind it) of each block of a page or notebook."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        codes = [
            "".join(cell["source"])
            for cell in json.loads(text)["cells"]
            if cell["cell_type"] == "code"
        ]
        return [("bash", c[1:], "") if c.startswith("!") else ("python", c, "") for c in codes]
    return [(m.group(1), m.group(2), text[m.end() : m.end() + 200]) for m in BLOCK.finditer(text)]


def commands(code: str) -> list[tuple[list[str], str | None]]:
    """Return the words of each hf-transfer command of a shell block, and where its output goes."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["hf-transfer"]:
                out = words[words.index(">") + 1] if ">" in words else None
                found.append((words[1 : words.index(">") if out else None], out))
    return found


def run_shell(code: str) -> None:
    """Run the commands of a block; the quickstart has a test of its own, installing is CI's, and
    who has trained on an earlier page does not train the same again."""
    from hf_transfer.cli import main

    for words, out in commands(code):
        if words == ["train", "quickstart"] or words in trained:
            continue
        if words[0] == "train":
            trained.append(words)
        with contextlib.ExitStack() as stack:
            if out:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(out, "w"))))
            status = main(words)
        if status:
            raise AssertionError(f"hf-transfer {shlex.join(words)} ended with status {status}")


def check_yaml(code: str, behind: str) -> None:
    """Save a recipe where the page says so; a part of one must fit into a whole one."""
    import yaml

    from hf_transfer.recipe.load import parse_recipe

    if saved := SAVED.match(behind):
        Path(saved.group(1)).write_text(code)
    given = yaml.safe_load(code)
    if "phases" not in given:
        code += "phases: [{train: head, epochs: 1}]\n"
    if "backbone" not in given:
        code += "backbone: timm/resnet18.a1_in1k\n"
    parse_recipe(code, "recipe.yaml")


def run_page(path: Path) -> None:
    """Run each block of a page, and print what came of it."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, (language, code, behind) in enumerate(blocks(path)):
        said, failure = io.StringIO(), None
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                if language == "python":
                    exec(compile(code, path.name, "exec"), namespace)
                elif language == "bash":
                    run_shell(code)
                elif language == "yaml":
                    check_yaml(code, behind)
            except (Exception, SystemExit):
                failure = traceback.format_exc()
        row = {"page": path.name, "block": number, "language": language, "failure": failure}
        print(json.dumps({**row, "said": said.getvalue()}), flush=True)


def shrink() -> None:
    """Have timm's ResNet-18 be a thin one that asks for images of 32 px: with 11 million weights
    and 224 px, what the pages train takes minutes."""
    from dataclasses import replace

    from timm.models import _registry, resnet

    known, name = _registry._model_pretrained_cfgs, "resnet18.a1_in1k"
    small = {"input_size": (3, 32, 32), "test_input_size": None, "pool_size": (1, 1)}
    known[name] = replace(known[name], **small)
    thin = {"channels": (16, 32, 48, 64), "stem_width": 16}
    _registry._model_entrypoints["resnet18"] = functools.partial(resnet.resnet18, **thin)


def answer_here() -> None:
    """Have the loaders of a pushed model answer in this process, not in a fresh one: to load it
    takes longer than most pages, and test_loaders.py does."""
    from hf_transfer.serving import loaders

    def answered(folder: Path, files: Path) -> dict[str, list[Any]]:
        paths, found = sorted(files.iterdir()), loaders._loaders(str(folder.resolve()))
        return {name: [answer(path) for path in paths] for name, answer in found}

    loaders._in_a_fresh_process = answered


def main(*pages: str) -> None:
    answer_here()
    shrink()
    for page in pages:
        gc.freeze()  # what earlier pages loaded: each phase goes through all else for garbage
        run_page(Path(page))
