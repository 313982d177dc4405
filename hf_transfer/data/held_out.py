"""Pictures that judge a model and must not train it: known again by content, wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hf_transfer.base.errors import DataError
from hf_transfer.data.audit import Audit
from hf_transfer.data.findings import finding
from hf_transfer.data.pixels import Seen
from hf_transfer.data.scan import Scan


@dataclass(frozen=True)
class HeldOut:
    """The validation and test pictures of the data at `path`: digests of their decoded pixels."""

    path: str
    pictures: frozenset[bytes]

    @classmethod
    def of(cls, found: Scan, seen: Seen) -> HeldOut:
        """Return those of a scan, of which `seen` is what decoding found out."""
        judging = [split != "train" for split in found.splits]
        rows = [row for row in np.flatnonzero(judging).tolist() if row not in seen.errors]
        return cls(found.path, frozenset(seen.pixels[row].tobytes() for row in rows))

    def leave_out(
        self, found: Scan, seen: Seen, about: Audit, kept: np.ndarray
    ) -> tuple[Audit, np.ndarray]:
        """Return an audit and the rows to use without these pictures; a finding names them.

        Raises DataError where nothing is left to train on.
        """
        known = np.array([seen.pixels[row].tobytes() in self.pictures for row in kept], bool)
        if not known.any():
            return about, kept
        names = [found.files[row] for row in kept[known].tolist()]
        kept = kept[~known]
        if not {"train", "validation"} <= set(found.splits.take(kept)):
            raise DataError(
                f"{found.path}: {len(names):,} of its images are in the validation or test images "
                f"of {self.path}, and too few are left to learn from; add other images"
            )
        done = f"left out: the same picture is in the validation or test images of {self.path}"
        return replace(about, findings=(*about.findings, finding("held-out", names, done))), kept
