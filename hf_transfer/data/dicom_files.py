"""DICOM files opened, and the tags that say whose images they are; by `pydicom`.

Nothing of a file but its pixels, and the one tag that groups images, is looked at, and no value of
a tag is ever repeated: names and private tags stay in the file.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.errors import DataError, UserError

GROUP = "dicom:"  # how data.group begins where a tag groups images, as in dicom:PatientID
INSTALL = 'pip install "hf-transfer-learning[dicom]"'
PACKERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"


def opened(source: bytes | str, **options: Any) -> Any:
    """Return a file, or its bytes, as pydicom's data set. Raises UserError, one line."""
    try:
        import pydicom
    except ImportError:
        raise UserError(f"a DICOM file; to read it: {INSTALL}") from None
    with in_our_words("it is damaged"):
        return pydicom.dcmread(BytesIO(source) if isinstance(source, bytes) else source, **options)


@contextmanager
def in_our_words(what: str, data: Any = None) -> Iterator[None]:
    """Turn any failure into a UserError that repeats nothing of the file."""
    try:
        with untrusted("a DICOM file"):
            yield
    except UserError as error:
        kind = type(error.__cause__).__name__ if error.__cause__ else "unknown"
        syntax = getattr(getattr(data, "file_meta", None), "TransferSyntaxUID", None)
        if syntax is not None and syntax.is_compressed:
            what += f"; it is compressed, which may need another package: {PACKERS}"
        raise UserError(f"a DICOM file: {what} ({kind})") from error.__cause__


def tag_groups(root: str | os.PathLike[str], names: Sequence[str], group: str) -> list[str]:
    """Return the group of each file by the value of a tag, such as "dicom:PatientID": the tag's
    name and a number, never the value; a file without the tag is a group of its own.

    Raises DataError for a tag that DICOM does not know, or that no file has.
    """
    values = tag_values(root, names, group)
    if names and not any(values):
        raise DataError(f"data.group {group!r}: none of the {len(names):,} files has this tag")
    keyword, numbers = group.removeprefix(GROUP).strip(), dict[str, int]()
    return [
        f"{keyword} {numbers.setdefault(value, len(numbers) + 1)}" if value else name
        for name, value in zip(names, values, strict=True)
    ]


def tag_values(root: str | os.PathLike[str], names: Sequence[str], group: str) -> list[str]:
    """Return the value of a tag of each file, "" where it has none; to compare and never to repeat.

    Raises DataError for a tag that DICOM does not know.
    """
    keyword = group.removeprefix(GROUP).strip()
    try:
        from pydicom.datadict import tag_for_keyword
    except ImportError:
        raise DataError(f"data.group {group!r} reads DICOM files; {INSTALL}") from None
    if tag_for_keyword(keyword) is None:
        raise DataError(
            f"data.group {group!r}: DICOM has no tag {keyword!r}; write one such as "
            "dicom:PatientID, dicom:StudyInstanceUID or dicom:SeriesInstanceUID"
        )
    with warnings.catch_warnings():  # they may repeat what stands in the file
        warnings.simplefilter("ignore")
        return [_tag(os.path.join(root, name), keyword) for name in names]


def _tag(path: str, keyword: str) -> str:
    """Return the value of a tag; "" for a file that has none or that is no DICOM file."""
    try:
        data = opened(path, stop_before_pixels=True, specific_tags=[keyword])
    except UserError:
        return ""
    return str(data.get(keyword) or "").strip()
