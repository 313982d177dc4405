"""Where a backbone comes from: an id to a library and a name, folder or repository.

Also here: how every failure of the libraries to find, fetch or read becomes one line.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_transfer.base.download import BackboneError, answering_hub, one_line

logger = logging.getLogger(__name__)

SOURCES = ("timm", "transformers", "torchvision")
OWN_TYPE = "hf_transfer_torchvision"  # the model_type of a torchvision network that we saved


@dataclass(frozen=True)
class Origin:
    """Where a backbone id leads: a library, and the name, folder or Hub repository it knows."""

    source: str
    name: str  # architecture (with tag), model type, or what transformers opens
    folder: Path | None = None
    repo: str | None = None
    config: dict[str, Any] | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return str(self.folder) if self.folder else f"{self.source}/{self.repo or self.name}"


def locate(backbone_id: str) -> Origin:
    """Return where `timm/NAME`, `transformers/REPO`, `torchvision/NAME`, a folder or OWNER/NAME on
    the Hub leads; a folder or repository by what its config.json says. Raises BackboneError."""
    folder = Path(backbone_id).expanduser()
    source, _, name = backbone_id.partition("/")
    if backbone_id and folder.is_dir():
        return _in_folder(folder)
    if backbone_id.startswith((".", "/", "~")):
        raise BackboneError(f"backbone folder {backbone_id} does not exist")
    if source in SOURCES and name:
        folder = Path(name).expanduser()
        if source == "transformers" and (folder / "config.json").is_file():
            return _in_folder(folder)
        if name.startswith((".", "/", "~")):
            return locate(name)
        return _on_hub(name) if "/" in name else Origin(source, name)
    if name and source and "/" not in name:
        return _on_hub(backbone_id)
    raise BackboneError(
        f"backbone {backbone_id!r} names no library; write timm/NAME, transformers/REPO, "
        "torchvision/NAME or the path of a folder"
    )


def _in_folder(folder: Path) -> Origin:
    inner = folder / "model"
    if not (folder / "config.json").is_file() and (inner / "config.json").is_file():
        folder = inner  # a run's folder
    path = folder / "config.json"
    if not path.is_file():
        raise BackboneError(
            f"backbone folder {folder} has no config.json; give a folder that timm, transformers "
            "or hf-transfer saved"
        )
    return _by_config(_read(path, str(path)), str(path), folder=folder)


def _on_hub(repo: str) -> Origin:
    from huggingface_hub import hf_hub_download

    owner, _, name = repo.partition("/")
    meant = [f"{source}/{name}" for source in difflib.get_close_matches(owner, SOURCES, n=1)]
    remedy = f"give {' or '.join(meant or ['timm/NAME, torchvision/NAME'])} or a local folder"
    with one_line(f"the Hub repository {repo}", remedy), answering_hub():
        path = hf_hub_download(repo, "config.json")
    return _by_config(_read(Path(path), f"config.json of {repo}"), repo, repo=repo)


def _read(path: Path, place: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BackboneError(f"{place} is not valid JSON ({error}); save the model again") from None
    if not isinstance(config, dict):
        raise BackboneError(f"{place} holds no settings by name; save the model again")
    return config


def _by_config(
    config: dict[str, Any], place: str, folder: Path | None = None, repo: str | None = None
) -> Origin:
    kind = config.get("model_type")
    if isinstance(config.get("architecture"), str) and kind in (None, "timm_wrapper"):
        return Origin("timm", config["architecture"], folder, repo, config)
    if kind == OWN_TYPE:
        return Origin("torchvision", config.get("architecture", ""), folder, repo, config)
    if isinstance(kind, str):
        return Origin("transformers", repo or str(folder), folder, repo, config)
    raise BackboneError(f"{place} names neither an architecture (timm) nor a model_type")


def local_folder(origin: Origin) -> Path | None:
    """Return the folder with an origin's files, downloaded first where it is a repository of the
    Hub; None for a name that its library knows."""
    if origin.repo is None:
        return origin.folder
    from huggingface_hub import snapshot_download

    with one_line(f"the weights of {origin}"), answering_hub():
        return Path(snapshot_download(origin.repo, allow_patterns=["*.json", "*.safetensors"]))


def nearest(name: str, names: Iterable[str]) -> str:
    """Return "; nearest: …" with the up to three names most like this one, or ""."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(near)}" if near else ""


# --- errors ----------------------------------------------------------------------------------
