"""Features as files: .npy with the images' names beside it, Parquet, or a folder of `datasets`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from hf_transfer.base.bars import quiet_datasets
from hf_transfer.base.boundary import as_text, untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import expanded, written_folder
from hf_transfer.base.outputs import file_to_write, folder_to_write
from hf_transfer.serving.kept_embeddings import Part

SUFFIXES = (".npy", ".parquet", "")
NAMES = ".txt"  # of the file with the images' names beside a .npy file


def place_of(out: str | Path) -> Path:
    """Return the path that features are written to. Raises UserError where they cannot be."""
    out = expanded(out)
    out = out if out.name else out.resolve()
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out}: features are written as .npy or .parquet, or as a folder")
    if not out.suffix:
        return folder_to_write(out)
    return file_to_write(out, (NAMES,) if out.suffix.lower() == ".npy" else ())


def write_embeddings(parts: Iterable[Part], out: Path) -> tuple[int, list[tuple[str, str]]]:
    """Write batches of features to a .npy or .parquet file, or without a suffix to a folder that
    `datasets.load_from_disk` reads; return how many rows there are, and the images that failed.

    Beside a .npy file NAME.txt has the images' names, one a line, in the order of the rows. Files
    appear when they are whole. Raises UserError.
    """
    write = _write_npy if out.suffix.lower() == ".npy" else _write_parquet
    scratch = out.with_name(f".{out.name}.part")
    errors: list[tuple[str, str]] = []
    try:
        with untrusted(f"or write {out}"):
            out.parent.mkdir(parents=True, exist_ok=True)
            count = write(parts, scratch, errors)
            if not count:
                raise UserError(errors[0][1] if errors else "there are no images to embed")
            if not out.suffix:
                _write_dataset(scratch, out)
                return count, errors
            scratch.replace(out)
            names = scratch.with_suffix(NAMES)
            if names.exists():
                names.replace(out.with_suffix(NAMES))
    finally:
        for left in (scratch, scratch.with_suffix(NAMES)):
            left.unlink(missing_ok=True)
    return count, errors


def _write_dataset(parquet: Path, out: Path) -> None:
    """Write the folder of a `datasets.Dataset` of what is in a Parquet file."""
    from datasets import Dataset

    with quiet_datasets(), written_folder(out, "features") as folder:
        made = folder.with_name(f"{folder.name}.cache")
        try:
            found = Dataset.from_parquet(str(parquet), cache_dir=str(made))
            found.save_to_disk(str(folder))
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _write_npy(parts: Iterable[Part], path: Path, errors: list[tuple[str, str]]) -> int:
    count = width = 0
    with path.open("w+b") as file, path.with_suffix(NAMES).open("w", encoding="utf-8") as names:
        for files, features, failed in parts:
            errors += failed
            if not files:
                continue
            if not width:
                width = features.shape[1]
                _header(file, 0, width)
            file.write(np.ascontiguousarray(features, np.float32).tobytes())
            names.writelines(f"{_line(name)}\n" for name in files)
            count += len(files)
        if count:
            file.seek(0)
            _header(file, count, width)  # as long as before: numpy leaves room for the number
    return count


def _header(file: IO[bytes], rows: int, width: int) -> None:
    form = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, form)


def _line(name: str) -> str:
    return as_text(name).replace("\n", "\\n")


def _write_parquet(parts: Iterable[Part], path: Path, errors: list[tuple[str, str]]) -> int:
    import pyarrow
    from pyarrow import parquet

    writer, count = None, 0
    try:
        for files, features, failed in parts:
            errors += failed
            if not files:
                continue
            values = pyarrow.array(np.ascontiguousarray(features, np.float32).reshape(-1))
            vectors = pyarrow.FixedSizeListArray.from_arrays(values, features.shape[1])
            names: Sequence[str] = [_line(name) for name in files]
            table = pyarrow.table({"file": pyarrow.array(names), "features": vectors})
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
            count += len(files)
    finally:
        if writer is not None:
            writer.close()
    return count
