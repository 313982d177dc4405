"""Files and folders written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from hf_transfer.base.errors import UserError


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file, whole or not at all, and return its path. Raises UserError.

    What UTF-8 cannot hold, such as a file name of other bytes, becomes an escape: JSON's own.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; free space or choose another folder"
        ) from None
    return path
