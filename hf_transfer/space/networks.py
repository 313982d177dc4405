"""The pretrained networks that visitors may choose: those that are here, and names on the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hf_transfer.base.boundary import printable, untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.space.limits import Refused

LETTERS = "Built in: drawn letters, 32 px"
IMAGE_MODELS = re.compile(
    r"beit|bit|convnext|cvt|data2vec-vision|deit|dinov2|dinov3|efficientnet|focalnet|hiera|ijepa|"
    r"levit|mobilenet|mobilevit|poolformer|pvt|regnet|resnet|segformer|swiftformer|swin|timm|"
    r"vit|vit_msn"
)
HUB_ID = re.compile(
    r"(timm|torchvision)/[A-Za-z0-9][\w.-]{0,95}"
    r"|(transformers/)?[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
)


def networks_here(given: Sequence[str] = ()) -> dict[str, str]:
    """Return the backbones that need no download, by what a visitor reads: those that the server
    was started with, then what lies in the Hub's cache."""
    found = {_title(one): one for one in given}
    for repo in _cached():
        found.setdefault(repo, repo)
    return found


def chosen(text: str, here: dict[str, str], offline: bool) -> str:
    """Return the backbone id of a visitor's choice: one that is here, or a name on the Hub.

    Never a path of this machine. Raises Refused.
    """
    if text in here:
        return here[text]
    name = " ".join(text.split())
    if not HUB_ID.fullmatch(name) or ".." in name or Path(name).exists():
        raise Refused(
            f"{printable(name)[:60]!r} is not a known network. Choose one from the list, or "
            "write a name such as timm/resnet18.a1_in1k or google/vit-base-patch16-224."
        )
    if offline:
        raise Refused(f"{name} is not on this machine, which is offline. Choose one from the list.")
    return name


def _title(backbone: str) -> str:
    path = Path(backbone).expanduser()
    return path.name if path.exists() else backbone


def _cached() -> Iterable[str]:
    """Yield the backbones in the Hub's cache whose weights are there."""
    import json

    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = sorted(scan_cache_dir().repos, key=lambda repo: repo.repo_id)
    except (CacheNotFound, OSError):
        return
    for repo in repos:
        files = {file.file_name: file.file_path for rev in repo.revisions for file in rev.files}
        if repo.repo_type != "model" or "model.safetensors" not in files:
            continue
        if repo.repo_id.startswith("timm/"):
            yield repo.repo_id
            continue
        try:
            with untrusted(repo.repo_id):
                kind = json.loads(Path(files["config.json"]).read_text())["model_type"]
        except UserError:
            continue
        if IMAGE_MODELS.match(str(kind)):
            yield f"transformers/{repo.repo_id}"
