"""Images to the features that the head reads: numbers in which similar images lie close."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from transformers import PreTrainedModel

from hf_transfer.base.bars import bar
from hf_transfer.base.boundary import printable, untrusted
from hf_transfer.base.errors import UserError
from hf_transfer.inputs.head_features import head_features
from hf_transfer.serving.pictures import batches, find_images
from hf_transfer.serving.predict import network_of

SUFFIXES = (".npy", ".parquet")


@dataclass(frozen=True)
class Embeddings:
    """Features float32 (N, D) of images, row by row of `files`; `errors` are (file, why not)."""

    files: tuple[str, ...]
    features: np.ndarray[Any, Any]
    errors: tuple[tuple[str, str], ...] = ()

    def near(self, query: np.ndarray[Any, Any], count: int = 10) -> list[tuple[str, float]]:
        """Return the `count` images most similar to features (D,), each with the cosine, -1..1."""
        rows = self.features / np.linalg.norm(self.features, axis=1, keepdims=True).clip(1e-12)
        cosines = rows @ (query / max(float(np.linalg.norm(query)), 1e-12))
        order = np.argsort(-cosines, kind="stable")[:count]
        return [(self.files[row], float(cosines[row])) for row in order]


def embed(model: PreTrainedModel | str | Path, images: Any, *, batch_size: int = 32) -> Embeddings:
    """Return the features of images, as `iter_embeddings` yields them, in memory."""
    files: list[str] = []
    errors: list[tuple[str, str]] = []
    parts = []
    for names, features, failed in iter_embeddings(model, images, batch_size=batch_size):
        files += names
        errors += failed
        parts.append(features)
    if not files:
        raise UserError(errors[0][1] if errors else "there are no images to embed")
    return Embeddings(tuple(files), np.concatenate(parts), tuple(errors))


def iter_embeddings(
    model: PreTrainedModel | str | Path, images: Any, *, batch_size: int = 32
) -> Iterator[tuple[list[str], np.ndarray[Any, Any], list[tuple[str, str]]]]:
    """Yield batches of (names, features float32 (B, D), images that fail with the reason).

    Features are what the head's first layer gets: one vector an image, averaged over places or
    tokens where the head gets more. `images` are what `predict` takes. Raises UserError.
    """
    model = network_of(model)
    for batch in batches(images, model.backbone.image, batch_size):
        pairs = list(zip(batch.names, batch.errors, strict=True))
        yield (
            [name for name, error in pairs if not error],
            head_features(model, batch.pixels),
            [(name, error) for name, error in pairs if error],
        )


def embed_to(
    model: str | Path,
    images: Sequence[str | Path],
    out: str | Path | None = None,
    near: str | Path | None = None,
    top: int = 10,
) -> tuple[list[str], list[str]]:
    """Write features to `out`, or find the `top` images most similar to the image `near`; return
    lines that tell of it, and why images were left out. Raises UserError, also for neither."""
    if (out is None) == (near is None):
        raise UserError("embed writes features (--out FILE) or finds similar images (--near IMAGE)")
    files = find_images(images)
    network = network_of(model)
    parts = iter_embeddings(network, files)
    if out is not None:
        place = Path(out).expanduser()
        with bar(len(files), "embed") as progress:
            count, errors = write_embeddings(_counted(parts, progress), place)
        return [f"features of {count:,} images written to {place}"], [why for _, why in errors]
    query = embed(network, find_images([near or ""])[:1]).features[0]
    found = embed(network, files)
    lines = [f"{cosine:.3f}  {printable(file)}" for file, cosine in found.near(query, top)]
    return lines, [why for _, why in found.errors]


def _counted(parts: Iterator[Any], progress: Any) -> Iterator[Any]:
    for part in parts:
        yield part
        progress.update(len(part[0]) + len(part[2]))


# --- files -------------------------------------------------------------------------------------


def write_embeddings(
    parts: Iterator[tuple[list[str], np.ndarray[Any, Any], list[tuple[str, str]]]], out: Path
) -> tuple[int, list[tuple[str, str]]]:
    """Write batches of features to a .npy or .parquet file, batch by batch; return how many rows
    there are, and the images that failed.

    Beside a .npy file NAME.txt has the images' names, one a line, in the order of the rows. Files
    appear when they are whole. Raises UserError, for another suffix, too.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out}: features are written as .npy or .parquet")
    write = _write_npy if out.suffix.lower() == ".npy" else _write_parquet
    scratch = out.with_name(f".{out.name}.part")
    errors: list[tuple[str, str]] = []
    try:
        with untrusted(f"or write {out}"):
            out.parent.mkdir(parents=True, exist_ok=True)
            count = write(parts, scratch, errors)
            if not count:
                raise UserError(errors[0][1] if errors else "there are no images to embed")
            scratch.replace(out)
            names = scratch.with_suffix(".txt")
            if names.exists():
                names.replace(out.with_suffix(".txt"))
    finally:
        for left in (scratch, scratch.with_suffix(".txt")):
            left.unlink(missing_ok=True)
    return count, errors


def _write_npy(parts: Any, path: Path, errors: list[tuple[str, str]]) -> int:
    count = width = 0
    with path.open("w+b") as file, path.with_suffix(".txt").open("w", encoding="utf-8") as names:
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
    return name.encode(errors="backslashreplace").decode().replace("\n", "\\n")


def _write_parquet(parts: Any, path: Path, errors: list[tuple[str, str]]) -> int:
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
