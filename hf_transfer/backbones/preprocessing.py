"""Pixel settings in the words of transformers' image processors: read from them and written so.

Each processor has its own way to say the same few things; all become one ImageSettings.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.download import BackboneError
from hf_transfer.base.files import read_limited
from hf_transfer.data.image_settings import ImageSettings

FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
OTHERS = ("ImageGPT", "Perceiver", "Siglip2")  # colours by number; cut, then resized; patches
REVERSED = ("PPLCNet",)  # gives BGR without saying so
WARPED = 384  # px from which ConvNext's processor squashes instead of cutting out the middle
BYTE = 255
DICOM = "hf_transfer_dicom"  # the key of preprocessor_config.json that says how DICOM is read


def read_processor(processor: Any, place: str) -> ImageSettings:
    """Return the settings that turn an RGB picture into what a transformers processor gives.

    Exact but for rounding (TextNet's also rounds sides up to a multiple); channels are RGB. Raises
    BackboneError for a processor that does anything else with pixels.
    """
    kind = type(processor).__name__
    if getattr(processor, "size", None) is None or kind.startswith(OTHERS):
        raise BackboneError(
            f"the image processor of {place} ({kind}) does not make one square of pixels of each "
            "picture; choose another backbone"
        )
    size, stored, mode = _sides(processor)
    if min(size, stored) < 1:
        raise BackboneError(f"the image processor of {place} makes images of {size} px; mend it")
    mean, std = _statistics(processor, place)
    return ImageSettings(
        size=size,
        channels=len(mean),
        mean=mean,
        std=std,
        interpolation=FILTERS.get(int(getattr(processor, "resample", None) or 0), "bicubic"),
        crop_pct=min(1.0, size / stored),
        crop_mode=mode,
        crop_offset="down",
    )


def takes_bgr(processor: Any) -> bool:
    """Return whether a processor gives the channels as blue, green, red."""
    kind = type(processor).__name__
    return bool(getattr(processor, "do_flip_channel_order", False)) or kind.startswith(REVERSED)


def _sides(processor: Any) -> tuple[int, int, Any]:
    """Return the side of the model's input, the side it is cut from, and how pictures get there."""
    size = {key: value for key, value in dict(processor.size).items() if value}
    short = size.get("shortest_edge") or getattr(processor, "resize_short", None)
    side = short or min(size.get("height", BYTE), size.get("width", BYTE))
    crop = getattr(processor, "crop_size", None)
    if getattr(processor, "do_center_crop", False) and crop:
        cut = crop if isinstance(crop, int) else dict(crop)["height"]
        pct = getattr(processor, "crop_pct", None)
        if pct:  # PoolFormer's
            return cut, int(side / pct), "center"
        if type(processor).__name__.startswith("Levit"):
            side = int(side * 256 / 224)
        return cut, max(cut, side) if side > 0 else side, "center" if short else "squash"
    pct = getattr(processor, "crop_pct", None)
    if pct and side < WARPED:  # ConvNext's
        return side, int(side / pct), "center"
    return side, side, "center" if short and not pct else "squash"


def _statistics(processor: Any, place: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation for pixels in 0..1, with all that a processor does folded in."""
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if not getattr(processor, "do_normalize", False) or not mean or not std:
        mean, std = [0.0] * 3, [1.0] * 3
    scale = getattr(processor, "rescale_factor", None)
    scale = 1 / BYTE if scale is None else scale
    if not getattr(processor, "do_rescale", True):
        scale = 1.0
    if not scale > 0:
        raise BackboneError(f"the image processor of {place} has rescale_factor {scale}; mend it")
    if getattr(processor, "rescale_offset", False):
        mean = [value + 1 for value in mean]
    scale *= BYTE
    folded = [value / scale for value in std]
    if getattr(processor, "include_top", False):  # EfficientNet's divides once more
        folded = [value * other for value, other in zip(folded, std, strict=True)]
    return tuple(value / scale for value in mean), tuple(folded)


def processor_config(image: ImageSettings, timm: bool = False) -> dict[str, Any]:
    """Return the preprocessor_config.json with which AutoImageProcessor prepares pictures as we do.

    For a timm folder it names the processor that reads config.json, as timm itself does.
    """
    side = image.stored
    squash = image.crop_mode == "squash"
    config: dict[str, Any] = {
        "image_processor_type": "TimmWrapperImageProcessor" if timm else "CLIPImageProcessor",
        # Pictures come in RGB from `load_image` and from pipelines: transformers' own conversion
        # would lay what is transparent on white, also where only a palette's entry is.
        "do_convert_rgb": False,
        "do_resize": True,
        "size": {"height": side, "width": side} if squash else {"shortest_edge": side},
        "resample": {name: code for code, name in FILTERS.items()}[image.interpolation],
        "do_center_crop": not (squash and side == image.size),
        "crop_size": {"height": image.size, "width": image.size},
        "do_rescale": True,
        "rescale_factor": 1 / BYTE,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }
    if image.window or image.frame:  # no other library reads DICOM files
        config[DICOM] = {"window": image.window and list(image.window), "frame": image.frame}
    return config


def saved_dicom(folder: Path | None) -> tuple[tuple[float, float] | None, int | None]:
    """Return the window and the frame that a saved model reads DICOM files with, None without.

    Raises BackboneError for invalid values.
    """
    path = folder and folder / "preprocessor_config.json"
    if not path or not path.is_file():
        return None, None
    with untrusted(str(path), "mend it, or train again", BackboneError):
        found = json.loads(read_limited(path)).get(DICOM) or {}
        window, frame = found.get("window"), found.get("frame")
        centre_width = None if window is None else (float(window[0]), float(window[1]))
        return centre_width, None if frame is None else int(frame)


def with_input(
    image: ImageSettings,
    size: int | None,
    channels: int | None,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> ImageSettings:
    """Return the settings for another size or number of channels; None leaves what there is.

    Where no `statistics` (mean, std) are given, one channel has the mean of the colours' own, and
    more repeat them in turn, as the first layer's weights do.
    """
    changes: dict[str, Any] = {"size": size} if size else {}
    if not channels or channels == image.channels:
        return replace(image, **changes)
    if statistics:
        mean, std = statistics
    elif channels == 1:
        mean, std = (sum(image.mean) / image.channels,), (sum(image.std) / image.channels,)
    elif channels > 1:
        mean, std = (
            tuple(values[i % image.channels] for i in range(channels))
            for values in (image.mean, image.std)
        )
    else:
        raise BackboneError(f"channels is {channels}; an input has 1 or more")
    return replace(image, **changes, channels=channels, mean=mean, std=std)
