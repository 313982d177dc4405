"""Recording: the layouts of popular backbones, traced once and written for recorded.py to read.

`python -m hf_transfer.backbones.record` writes them all.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.backbones.sweep import build, traced
from hf_transfer.base.files import write_bytes
from hf_transfer.planning.layout import Layout
from hf_transfer.planning.recorded import FOLDER, LABELS

if TYPE_CHECKING:
    from torch import nn

TIMM = """
convnext_atto convnext_base convnext_small convnext_tiny convnextv2_tiny deit_small_patch16_224
deit3_small_patch16_224 densenet121 efficientnet_b0 efficientnet_b2 efficientnetv2_rw_s
mobilenetv3_large_100 mobilenetv3_small_100 mobilenetv4_conv_small regnety_016 resnet101 resnet10t
resnet18 resnet26d resnet34 resnet50 resnet50d swin_base_patch4_window7_224
swin_tiny_patch4_window7_224 test_resnet tf_efficientnetv2_s vgg16 vit_base_patch14_dinov2
vit_base_patch16_224 vit_base_patch16_clip_224 vit_small_patch14_dinov2 vit_small_patch16_224
vit_tiny_patch16_224
"""
TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 mobilenet_v3_large mobilenet_v3_small resnet18
resnet50 swin_t vgg16 vit_b_16
"""
HALF, IMAGENET = (0.5, 0.5, 0.5), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Repositories of the Hub, with what their config.json and preprocessor_config.json say.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "google/vit-base-patch16-224": ("vit", {}, {"mean": HALF, "std": HALF}),
    "google/vit-base-patch16-224-in21k": ("vit", {}, {"mean": HALF, "std": HALF}),
    "facebook/dinov2-small": (
        "dinov2",
        {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518},
        {"size": 224, "interpolation": "bicubic", "crop_pct": 224 / 256},
    ),
    "facebook/dinov2-base": (
        "dinov2",
        {"image_size": 518},
        {"size": 224, "interpolation": "bicubic", "crop_pct": 224 / 256},
    ),
    "microsoft/resnet-50": ("resnet", {}, {"interpolation": "bicubic", "crop_pct": 0.875}),
    "facebook/convnext-tiny-224": ("convnext", {}, {"interpolation": "bicubic", "crop_pct": 0.875}),
    "microsoft/swin-tiny-patch4-window7-224": ("swin", {}, {"interpolation": "bicubic"}),
}
SIZES = (64, 96, 128, 224)  # recorded in addition to its own for networks that take any size


def record(folder: Path = FOLDER) -> Iterator[str]:
    """Write the layouts of the popular backbones below `folder`; yield each one's id."""
    names = [
        *(f"timm/{name}" for name in TIMM.split()),
        *(f"torchvision/{name}" for name in TORCHVISION.split()),
        *(f"transformers/{name}" for name in TRANSFORMERS),
    ]
    for name in names:
        path = folder / f"{name}.json.gz"
        text = json.dumps(recording(name), separators=(",", ":"))
        write_bytes(path, gzip.compress(text.encode(), mtime=0))
        yield name


def recording(name: str) -> dict[str, Any]:
    """Return the record of a backbone: layout, cost by input size, pixels' settings by tag."""
    images = _images(name)
    own = [image["size"] for image in images.values()]
    network = _built(name, 10)
    pool = getattr(network, "global_pool", None)
    sizes = dict.fromkeys(own[:1] if _is_fixed(network) else (*own, *SIZES))
    traces = {size: [fresh_layout(name, labels, size) for labels in (10, 11)] for size in sizes}
    ten, eleven = traces[own[0]]
    layout = {k: v for k, v in ten.to_dict().items() if k not in ("macs", "crossing", "labels")}
    layout["parameters"] = [
        [parameter, [LABELS if a != b else a for a, b in zip(shape, other, strict=True)]]
        for (parameter, shape), (_, other) in zip(ten.parameters, eleven.parameters, strict=True)
    ]
    return {
        "layout": layout | {"image": {}},
        "sizes": {str(size): _cost(*pair) for size, pair in traces.items()},
        "images": images,
        "global_pool": pool if isinstance(pool, str) else "avg",  # of most it is a module
    }


def _cost(ten: Layout, eleven: Layout) -> dict[str, Any]:
    """Return the multiply-adds and crossing numbers that do not depend on the labels, and those of
    each label."""
    found: dict[str, Any] = {}
    for key in ("macs", "crossing"):
        few, more = getattr(ten, key), getattr(eleven, key)
        slope = [b - a for a, b in zip(few, more, strict=True)]
        found[key] = [count - 10 * each for count, each in zip(few, slope, strict=True)]
        found[f"{key}_per_label"] = [[i, each] for i, each in enumerate(slope) if each]
    return found


def _images(name: str) -> dict[str, dict[str, Any]]:
    """Return the pixels' settings by tag; the first, "", is what the name alone means."""
    from hf_transfer.backbones.building import draw
    from hf_transfer.backbones.origins import Origin
    from hf_transfer.data.image_settings import ImageSettings

    source, _, rest = name.partition("/")
    if source == "transformers":
        _, _, image = TRANSFORMERS[rest]
        values = {"size": 224, "mean": IMAGENET[0], "std": IMAGENET[1], "interpolation": "bilinear"}
        values["crop_offset"] = "down"  # as `draw` has it
        return {"": asdict(ImageSettings(**{**values, **image}))}
    tags = [""]  # torchvision's weights but for its defaults are seldom named, and not recorded
    if source == "timm":
        import timm

        tags += [full.partition(".")[2] for full in timm.list_pretrained(f"{rest}.*")]
    names = {tag: f"{rest}.{tag}" if tag else rest for tag in tags}
    return {tag: asdict(draw(Origin(source, full)).image) for tag, full in names.items()}


def _is_fixed(network: nn.Module) -> bool:
    """Whether the network takes images of one size only, as far as it says."""
    settings = getattr(network, "pretrained_cfg", None)
    if settings:
        return bool(settings.get("fixed_input_size")) or not settings.get("pool_size")
    names = {type(module).__name__.lower() for module in network.modules()}
    return any("attention" in n or "swin" in n or "vit" in n for n in names)


def fresh_layout(name: str, labels: int, size: int) -> Layout:
    """Return the layout of a backbone that is recorded, traced afresh at this input size."""
    return traced(_built(name, labels), _built(name, labels + 1), size, labels)


def _built(name: str, labels: int) -> nn.Module:
    source, _, rest = name.partition("/")
    if source != "transformers":
        return build(name, labels)
    kind, settings, _ = TRANSFORMERS[rest]
    return build(f"transformers/{kind}", labels, **settings)


if __name__ == "__main__":
    for written in record():
        print(written, flush=True)
