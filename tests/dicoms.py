"""DICOM files as scanners and archives write them, made with pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

NAME, SECRET = "Doe^Jane", "private words"


def dicom(path: Path, values: np.ndarray, **tags: Any) -> Path:
    """Write stored values, (H, W) or (F, H, W) or with colours last, as a DICOM file; return it.

    It names a patient and has a private tag. `tags` are set by keyword.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), Dataset(), file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    data.PatientName, data.PatientID = NAME, tags.pop("PatientID", "4711")
    block = data.private_block(0x0011, "A MAKER", create=True)
    block.add_new(0x01, "LO", SECRET)
    colour = values.shape[-1] == 3
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    frames = values.ndim - (3 if colour else 2)
    if frames:
        data.NumberOfFrames = len(values)
    data.Rows, data.Columns = values.shape[frames : frames + 2]
    bits = values.dtype.itemsize * 8
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    data.PixelData = values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def ramp(side: int = 32, dtype: str = "int16", least: int = 0, most: int = 1000) -> np.ndarray:
    """Return values (side, side) that rise from left to right."""
    row = np.linspace(least, most, side).round()
    return np.broadcast_to(row, (side, side)).astype(dtype)
