"""DICOM files as pictures of 8 bits, as a viewer shows them; read by `pydicom`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from hf_transfer.base.errors import UserError
from hf_transfer.data.dicom_files import in_our_words, opened

BYTES_A_PIXEL = 24  # of memory while one is made: stored, rescaled as float64, windowed
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
GRAYS = ("MONOCHROME1", "MONOCHROME2")

Window = tuple[float, float]  # centre and width, in the units after the rescale


def read_dicom(
    source: bytes, window: Window | None = None, frame: int | None = None
) -> Image.Image:
    """Return a DICOM file's picture, in mode "L" or "RGB"; `info["notes"]` are for the audit.

    Stored values are rescaled, and the window (`window`, else the file's own, else from the least
    to the greatest value) becomes 0..255; MONOCHROME1 is turned, so that more is brighter; palettes
    become colours. `frame`, from 1 on, chooses one of several. Raises UserError, one line without
    anything that stands in the file.
    """
    data = opened(source)
    count = int(data.get("NumberOfFrames") or 1)
    if count > 1 and frame is None:
        raise UserError(
            f"a DICOM file of {count:,} frames; choose one with data.frame: 1 to {count}"
        )
    if frame is not None and frame > count:
        raise UserError(f"a DICOM file of {count:,} frames has no frame {frame} (data.frame)")
    kind = str(data.get("PhotometricInterpretation", "MONOCHROME2"))
    if kind not in (*COLOURS, *GRAYS):
        raise UserError("a DICOM file whose pixels are neither gray, RGB, YBR nor of a palette")
    at = (frame or 1) - 1
    with in_our_words("its pixels cannot be decoded", data):
        from pydicom.pixels.processing import apply_color_lut
        from pydicom.pixels.utils import pixel_array

        values = pixel_array(data, index=at)
        if kind == "PALETTE COLOR":
            values = apply_color_lut(values, data)
        shown = _gray(values, data, at, window) if kind in GRAYS else _colours(values, data, kind)
    image = Image.fromarray(255 - shown if kind == "MONOCHROME1" else shown)
    burnt = str(data.get("BurnedInAnnotation", "")).upper() == "YES"
    image.info["notes"] = ("dicom", "burnt-in-text") if burnt else ("dicom",)
    return image


def size_of(source: bytes) -> tuple[int, int]:
    """Return width and height of a DICOM file's pictures. Raises UserError."""
    data = opened(source, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
    size = int(data.get("Columns") or 0), int(data.get("Rows") or 0)
    if not all(size):
        raise UserError("a DICOM file without a picture")
    return size


# --- pixels ----------------------------------------------------------------------------------


def _gray(values: np.ndarray, data: Any, frame: int, window: Window | None) -> np.ndarray:
    """Return stored values (H, W) as uint8, by the rescale and the window."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    padding = data.get("PixelPaddingValue")
    inside = values != padding if isinstance(padding, int) else np.ones(values.shape, bool)
    if "ModalityLUTSequence" in data:
        exact = apply_modality_lut(values, data).astype(np.float64)
    else:
        sequence = "PixelValueTransformationSequence"
        slope = _number(data, frame, sequence, "RescaleSlope", 1.0)
        shift = _number(data, frame, sequence, "RescaleIntercept", 0.0)
        exact = values.astype(np.float64) * slope + shift
    if window is None and "VOILUTSequence" in data:
        looked = apply_voi(exact.astype(np.int64), data)
        bits = int(data.VOILUTSequence[0].LUTDescriptor[2])
        return np.asarray(looked / (2**bits - 1) * 255 + 0.5).clip(0, 255).astype(np.uint8)
    if window is None:
        centre = _number(data, frame, "FrameVOILUTSequence", "WindowCenter", None)
        width = _number(data, frame, "FrameVOILUTSequence", "WindowWidth", None)
        if centre is not None and width is not None and width >= 1:
            window = centre, width
    if window is None:
        seen = exact[inside] if inside.any() else exact
        least, most = float(seen.min()), float(seen.max())
        return _scaled(exact, least, most)
    centre, width = window
    # PS3.3, C.11.2.1.2.1: a window of width w covers the w values about its centre less a half.
    return _scaled(exact, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _scaled(values: np.ndarray, least: float, most: float) -> np.ndarray:
    """Return values as uint8: 0 up to `least`, 255 from `most` on."""
    if most <= least:
        return np.where(values > least, 255, 0).astype(np.uint8)
    shares = (values - least) / (most - least)
    return np.asarray(shares.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _colours(values: np.ndarray, data: Any, kind: str) -> np.ndarray:
    """Return colours (H, W, 3) as uint8."""
    values = values[..., :3]
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    bits = int(data.get("BitsStored") or 16) if kind != "PALETTE COLOR" else 16
    return _scaled(values.astype(np.float64), 0, 2**bits - 1)


def _number(data: Any, frame: int, sequence: str, keyword: str, default: Any) -> Any:
    """Return the first value of a tag: the file's, or, of one with functional groups, the frame's
    own or the one that all frames share."""
    places = [data]
    for groups, at in (("PerFrameFunctionalGroupsSequence", frame), (_SHARED, 0)):
        if groups in data and at < len(data[groups].value):
            item = data[groups].value[at]
            places += list(item[sequence].value) if sequence in item else []
    for place in places:
        value = place.get(keyword)
        if value is not None:
            several = isinstance(value, Sequence) or hasattr(value, "__len__")
            return float(value[0] if several and not isinstance(value, str) else value)
    return default


_SHARED = "SharedFunctionalGroupsSequence"
