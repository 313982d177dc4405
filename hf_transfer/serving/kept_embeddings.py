"""Features of image files in the store that training's pixels and features are in.

An entry is named by the files' content, the weights, the group and the settings of the image, so a
second call reads it, and one after a kill continues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_transfer.base.bars import bar
from hf_transfer.base.boundary import printable
from hf_transfer.base.cache import cache_folder
from hf_transfer.base.shards import Column, Write
from hf_transfer.base.store import StoredRows, open_rows
from hf_transfer.data.columns import Codes
from hf_transfer.data.digests import Reading
from hf_transfer.data.image_set import ImageSet
from hf_transfer.data.pixels import NAME, LivePixels
from hf_transfer.data.scan import Scan
from hf_transfer.inputs.feature_key import feature_key
from hf_transfer.inputs.passage import digest
from hf_transfer.serving.pictures import batches

VERSION = 1  # of what an entry means
WHY = Column((), "S256")  # why an image has no features; "" where it has
AT_ONCE = 4096  # rows that are read together

Features = Callable[[torch.Tensor], np.ndarray[Any, Any]]
Part = tuple[list[str], np.ndarray[Any, Any], list[tuple[str, str]]]


@dataclass(frozen=True)
class Files:
    """Image files whose features are kept: `features` makes float32 (B, D) of stored pixels."""

    model: PreTrainedModel
    files: tuple[str, ...]
    group: str
    features: Features
    batch_size: int

    def parts(self) -> Iterator[Part]:
        """Yield (names, features (B, D), images that fail with the reason). Raises StoreError
        where nothing can be kept."""
        stored = self._stored()
        for first in range(0, len(self.files), AT_ONCE):
            rows = np.arange(first, min(first + AT_ONCE, len(self.files)))
            features, told = stored[rows]
            names = [self.files[row] for row in rows.tolist()]
            failed = [
                (name, why.decode(errors="replace").replace(NAME, printable(name)))
                for name, why in zip(names, told.tolist(), strict=True)
                if why
            ]
            sound = told == b""
            kept = [name for name, good in zip(names, sound.tolist(), strict=True) if good]
            yield kept, features[sound], failed

    def _stored(self) -> StoredRows:
        columns = (Column((self._width(),), "float32"), WHY)
        return open_rows(
            self._key(columns),
            columns,
            len(self.files),
            partial(self._run, width=columns[0].shape[0]),
            root=cache_folder("features"),
            about=f"{self.model.backbone.id}, {self.group}, {len(self.files):,} images to embed",
        )

    def _width(self) -> int:
        image = self.model.backbone.image
        shape = (2, image.stored, image.stored, image.channels)
        return int(self.features(torch.zeros(shape, dtype=torch.uint8)).shape[1])

    def _key(self, columns: Sequence[Column]) -> str:
        backbone = self.model.backbone
        none = Codes([0] * len(self.files))
        found = Scan("images to embed", Path(), ("image",), self.files, none, none)
        contents = Reading(found).contents(cache_folder("contents"), False)
        rows = np.arange(len(self.files))
        pixels = LivePixels(backbone.image, contents, rows, found, True)
        bare = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        head = {f"{backbone.prefix}{name}" for name in backbone.layout.head}
        return feature_key(
            ImageSet(pixels, np.zeros(len(rows), np.int64), found.labels, self.files),
            program=f"{VERSION}, embedded at {self.group} of {backbone.layout.parameters}",
            weights=digest([bare[name] for name in sorted(bare) if name not in head]),
            image=backbone.image,
            variation=(),
            device=self.model.device.type,
            precision=str(self.model.dtype),
            columns=columns,
        )

    def _run(self, spans: Iterable[range], write: Write, width: int) -> None:
        """Write the features of these rows, a batch at a time, and none across two spans."""
        with bar(len(self.files), "embed") as progress:
            for span in spans:
                names = self.files[span.start : span.stop]
                found = batches(names, self.model.backbone.image, self.batch_size)
                for batch in found:
                    features = np.zeros((len(batch.names), width), np.float32)
                    sound = [row for row, why in enumerate(batch.errors) if why is None]
                    if sound:
                        features[sound] = self.features(batch.pixels)
                    told = [
                        (why or "").replace(printable(name), NAME).encode(errors="replace")[:256]
                        for name, why in zip(batch.names, batch.errors, strict=True)
                    ]
                    write([features, np.array(told, WHY.dtype)])
                    progress.update(len(batch.names))
