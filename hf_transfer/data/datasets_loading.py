"""Tables as `datasets` opens them, by split, from local files and from the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from hf_transfer.base.boundary import untrusted
from hf_transfer.base.download import answering_hub
from hf_transfer.base.errors import DataError
from hf_transfer.data import reading
from hf_transfer.data.split_names import split_of
from hf_transfer.recipe.specs import DataSpec

SAVED = ("dataset_dict.json", "state.json")  # in a folder that save_to_disk has written
FILES = {".parquet": "parquet", ".arrow": "arrow"}


def load_tables(path: Path, files: Sequence[str], spec: DataSpec) -> dict[str, Any]:
    """Return the tables by split. Raises what made `datasets` fail, and not that it failed."""
    import datasets

    local = [path] if path.is_file() else [path / name for name in files]
    tables = [one for one in local if one.suffix.lower() == ".parquet"]
    if tables and not any(_rows_in(one) for one in tables):
        raise DataError(f"{path}: no rows; expected a row per image")
    try:
        return _load(path, files, spec)
    except datasets.exceptions.DatasetGenerationError as error:
        raise (error.__cause__ or error) from None


def _rows_in(path: Path) -> int:
    from pyarrow import parquet

    return int(parquet.read_metadata(path).num_rows)


def _load(path: Path, files: Sequence[str], spec: DataSpec) -> dict[str, Any]:
    import datasets

    if path.is_file():
        kind = FILES[path.suffix.lower()]
        found = datasets.load_dataset(kind, _version([path]), data_files=str(path))
    elif any(name in SAVED for name in files):
        try:
            found = datasets.load_from_disk(str(path))
        except IndexError as error:  # of a saved table without rows it finds no first part
            raise DataError(
                f"{path}: no rows in it, or in one of its splits; save it again without that"
            ) from error
    elif path.is_dir():
        by_split = _data_files(path, files)
        kind = FILES[os.path.splitext(next(iter(by_split.values()))[0])[1].lower()]
        every = [Path(name) for names in by_split.values() for name in names]
        found = datasets.load_dataset(kind, _version(every), data_files=by_split)
    else:
        remedy = "it is neither a folder nor a data set on the Hub that can be reached"
        with untrusted(f"data {str(path)!r}", remedy, DataError), answering_hub():
            found = datasets.load_dataset(str(path), name=spec.config)
    return dict(found) if isinstance(found, dict) else {"train": found}


def _version(files: Sequence[Path]) -> str:
    """Return a name for these files as they are now: `datasets` itself knows a file that it has
    read by its path and time alone, and would give the rows of the one before."""
    told = "\0".join(map(reading.identity_of, map(str, files)))
    return f"as-{blake2b(told.encode(), digest_size=8).hexdigest()}"


def _data_files(path: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """Return {split: files} by the names of folders, train/0.parquet, or files, train-0.parquet."""
    found: dict[str, list[str]] = {}
    tables = [name for name in files if name.lower().endswith(tuple(FILES))]
    for name in tables:
        parts = [part for part in re.split(r"[/.]", name)[:-1] if part != "data"]
        parts = [re.split(r"[-_.]?\d", part)[0] for part in parts]
        split = next((split for part in parts if (split := split_of(part))), "")
        found.setdefault(split, []).append(str(path / name))
    if "" in found and len(found) > 1:
        raise DataError(
            f"{path}: some tables name a split, and {Path(found[''][0]).name} does not; put "
            "each in a folder called train, validation or test"
        )
    return {split or "train": names for split, names in found.items()}
