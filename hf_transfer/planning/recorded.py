"""Layouts of well-known backbones, recorded: a plan of them needs no torch and no network.

One small file an architecture, written by `python -m hf_transfer.backbones.record` and compared
with a fresh trace by a test. What is not recorded (another input size, another tag) is None, never
a guess: the caller then builds and traces the network.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import expanded
from hf_transfer.planning.layout import Layout

FOLDER = Path(__file__).resolve().parent / "recorded"
LABELS = -1  # stands in a recorded shape for the number of labels


def recorded_names() -> tuple[str, ...]:
    """Return the ids of the recorded backbones, such as `timm/resnet50`, in alphabetical order."""
    paths = sorted(FOLDER.rglob("*.json.gz"))
    return tuple(path.relative_to(FOLDER).as_posix().removesuffix(".json.gz") for path in paths)


def recorded_layout(backbone_id: str, labels: int, image_size: int | None = None) -> Layout | None:
    """Return the layout of a recorded backbone with a head for `labels`, or None.

    `backbone_id` is `timm/NAME[.tag]`, `torchvision/NAME[.tag]`, `transformers/OWNER/NAME` or a
    folder whose config.json names a recorded timm architecture. `image_size` None is the size that
    the backbone's own weights were trained at.
    """
    folder = expanded(backbone_id)
    if folder.is_dir():
        return _of_folder(folder, labels, image_size)
    name, tag = backbone_id, ""
    if not backbone_id.startswith("transformers/"):
        name, _, tag = backbone_id.partition(".")
    record = _read(name)
    image = record["images"].get(tag) if record else None
    if record is None or image is None:
        return None
    return _layout(record, labels, image, image_size)


def _of_folder(folder: Path, labels: int, image_size: int | None) -> Layout | None:
    """Return the layout of a timm folder with the pixels' settings in its config.json; None for
    any other, and for a config that cannot be read: the loader says what is wrong with it."""
    try:
        with untrusted(str(folder / "config.json")):
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            return _by_config(config, labels, image_size)
    except UserError:
        return None


def _by_config(config: Any, labels: int, image_size: int | None) -> Layout | None:
    if config.get("model_type", "timm_wrapper") != "timm_wrapper":
        return None
    record = _read(f"timm/{config['architecture']}")
    settings = config["pretrained_cfg"]
    if record is None or not isinstance(settings, dict) or not _is_plain(config, record):
        return None
    image = dict(record["images"][""])
    channels, _, image["size"] = settings.get("input_size") or (3, 0, image["size"])
    if channels != image["channels"]:
        return None
    for key in ("mean", "std", "interpolation", "crop_pct"):
        image[key] = settings.get(key) or image[key]
    return _layout(record, labels, image, image_size)


def _is_plain(config: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether a folder's network is the recorded one: no arguments that change its layers."""
    usual = {"in_chans": 3, "global_pool": record.get("global_pool")}
    arguments = config.get("model_args") or {}
    return all(k == "num_classes" or usual.get(k, k) == v for k, v in arguments.items())


def _layout(
    record: dict[str, Any], labels: int, image: dict[str, Any], image_size: int | None
) -> Layout | None:
    size = image_size or image["size"]
    cost = record["sizes"].get(str(size))
    if cost is None:
        return None
    layout = dict(record["layout"])
    layout["parameters"] = [
        [name, [labels if side == LABELS else side for side in shape]]
        for name, shape in layout["parameters"]
    ]
    for key in ("macs", "crossing"):
        per_label = dict(cost[f"{key}_per_label"])
        layout[key] = [count + labels * per_label.get(i, 0) for i, count in enumerate(cost[key])]
    layout["image"] = {**image, "size": size}
    layout["labels"] = labels
    return Layout.from_dict(layout)


def _read(name: str) -> dict[str, Any] | None:
    """Return the record of a backbone without tag, or None."""
    if name not in recorded_names():
        return None
    record: dict[str, Any] = json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))
    return record
