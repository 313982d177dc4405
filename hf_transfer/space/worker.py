"""The process that trains for one visitor: reads what is asked, calls `run`, and tells of it.

`python -m hf_transfer.space.worker` imports all of this once, and waits for folders of trainings.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from hf_transfer.base.boundary import printable, redacted, said
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import write_text
from hf_transfer.base.threads import prepare
from hf_transfer.data.sources import Scan, scan
from hf_transfer.deciding.advise import advise
from hf_transfer.deciding.advise_page import depth_chart
from hf_transfer.deciding.advise_text import answer, sentences
from hf_transfer.deciding.quickstart import train_letters
from hf_transfer.progress import quiet
from hf_transfer.recipe.load import dump_recipe, parse_recipe
from hf_transfer.run import run
from hf_transfer.serving.embed import embed
from hf_transfer.serving.predict import iter_predictions, ready
from hf_transfer.space.nursery import ASKED, Told, serve

NICER = 5  # than the server, which answers the others meanwhile
ADVICE_SECONDS = 60.0  # beyond which advice looks at fewer images
STEP_SECONDS = 0.3  # between two lines about steps


class Progress(TrainerCallback):
    """Tell of phases, steps, losses and measurements."""

    def __init__(self, told: Told, way: str) -> None:
        self.told, self.way, self.last = told, way, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell that a phase begins."""
        name = Path(args.output_dir).name
        self.told("phase", way=self.way, phase=name, steps=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the step, a few times a second."""
        now = time.monotonic()
        if now - self.last > STEP_SECONDS or state.global_step == state.max_steps:
            self.last = now
            self.told("step", way=self.way, step=state.global_step, epoch=state.epoch or 0.0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Tell the loss."""
        if "loss" in logs:
            self.told("loss", way=self.way, epoch=state.epoch or 0.0, value=float(logs["loss"]))

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        """Tell the accuracy on validation."""
        if (value := metrics.get("eval_accuracy")) is not None and state.epoch is not None:
            self.told("accuracy", way=self.way, epoch=state.epoch, value=float(value))


def train(folder: Path) -> None:
    """Do what is asked in a folder, and tell of it there."""
    prepare()  # counts what others compute from now on, not from when this was imported
    if hasattr(os, "nice"):
        os.nice(NICER)
    told = Told(folder)
    try:
        _work(folder, told)
    except UserError as error:
        told("failed", why=_words(str(error), folder))
    except Exception as error:  # of any class: the visitor reads a line, the log has the rest
        told("failed", why=_words(said(error), folder))
        raise


def _words(text: str, folder: Path) -> str:
    """Return a message without this machine's paths, tokens and control characters."""
    return printable(redacted(text)).replace(f"{folder.parent}/", "").replace(str(folder), "")


def _work(folder: Path, told: Told) -> None:
    asked = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    os.environ["HF_TRANSFER_CACHE"] = str(folder / "cache")  # nobody else's, and gone with it
    if asked.get("letters"):
        told("done", accuracy=train_letters(Path(asked["letters"]), asked["images"]))
        return
    if wanted := asked.get("advise"):
        _advise(wanted, told)
        return
    for name, text in asked["ways"].items():
        recipe = parse_recipe(text, f"{name}.yaml")
        told("way", way=name)
        out = folder / name
        found = scan(recipe.data, recipe.seed, recipe.task)  # before its visitor adds more
        report = run(recipe, out, callbacks=[Progress(told, name)])
        told("finishing", way=name)
        write_text(out / "shown.json", json.dumps(_shown(found, out)))
        told("model", way=name, accuracy=report.metrics.get("accuracy"))
    told("done")


def _advise(wanted: dict[str, Any], told: Told) -> None:
    """Look at the images as `advise` does, and tell what came out."""
    px = wanted["image_px"]
    found = advise(
        wanted["data"],
        backbone=wanted["backbone"],
        budget=ADVICE_SECONDS,
        overrides=[f"data.image_size={px}"] if px else [],
    )
    told(
        "advice",
        answer=answer(found),
        sentences=[list(pair) for pair in sentences(found)],
        chart=depth_chart(found),
        recipe=dump_recipe(found.recipe),
    )
    told("done")


def _shown(found: Scan, out: Path) -> dict[str, Any]:
    """Return what the model says of each validation image, and keep the features of those that it
    was trained on, for finding similar ones."""
    network = ready(out)
    by_split = {split: found.splits.where(split).tolist() for split in ("train", "validation")}
    rows = []
    validation = by_split["validation"]
    paths = [found.root / found.files[row] for row in validation]
    found_rows = iter_predictions(network, paths, top=1) if paths else iter(())
    for row, one in zip(validation, found_rows, strict=True):
        if one.labels:
            (label, share) = one.labels[0]
            true = found.labels[found.targets[row]]
            rows.append([found.files[row], true, label, share])
    train = [found.root / found.files[row] for row in by_split["train"]]
    with contextlib.suppress(UserError):
        features = embed(network, train, keep=False)
        np.save(out / "features.npy", features.features)
        names = [str(Path(file).relative_to(found.root)) for file in features.files]
        write_text(out / "features.json", json.dumps(names))
    return {"root": str(found.root), "labels": list(found.labels), "validation": rows}


if __name__ == "__main__":
    quiet()
    serve(train)
