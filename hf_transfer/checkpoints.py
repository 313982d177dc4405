"""The folder of a phase: its end weights, its report, and how an interrupted run finds them.

`phase-1-head/phase.json` is written last and atomically: where it is there, the phase is done and
the checkpoint that it names is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_transfer.report import PhaseReport

DONE = "phase.json"


def write_phase(
    folder: Path, model: nn.Module, report: PhaseReport, state: dict[str, Any], key: str
) -> None:
    """Write the end of a phase: `checkpoint-<steps>/` with weights and state, then phase.json."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"checkpoint-{report.steps}"
    beside = folder / f"{name}.part"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    state_dict = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    save_file(state_dict, beside / "model.safetensors", metadata={"format": "pt"})
    (beside / "trainer_state.json").write_text(json.dumps(state, indent=2) + "\n")
    for old in folder.glob("checkpoint-*"):
        if old != beside:
            shutil.rmtree(old)
    beside.rename(folder / name)
    part = folder / f"{DONE}.part"
    part.write_text(json.dumps({"checkpoint": name, "key": key, "report": asdict(report)}) + "\n")
    os.replace(part, folder / DONE)


def read_phase(folder: Path, model: nn.Module, key: str) -> PhaseReport | None:
    """Load the end weights of a finished phase into the model and return its report.

    None where the phase is not finished or was another one (its key differs).
    """
    path = folder / DONE
    if not path.is_file():
        return None
    done = json.loads(path.read_text())
    weights = folder / done["checkpoint"] / "model.safetensors"
    if done["key"] != key or not weights.is_file():
        return None
    model.load_state_dict(load_file(weights))
    return PhaseReport.from_dict(done["report"])


def read_best(checkpoint: Path) -> dict[str, torch.Tensor] | None:
    """Return the best weights of the phase so far, as they were saved beside a checkpoint."""
    path = checkpoint / "best.safetensors"
    return load_file(path) if path.is_file() else None
