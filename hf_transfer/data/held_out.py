"""What judges a model and must not train it, known again wherever it lies: pictures by their
content, and whose they are (a patient's, a video's) by the data's `group`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hf_transfer.base.errors import DataError
from hf_transfer.data.audit import Audit
from hf_transfer.data.findings import Finding, finding
from hf_transfer.data.image_groups import owners
from hf_transfer.data.pixels import Seen
from hf_transfer.data.scan import Scan

KINDS = ("held-out", "held-out-group")  # of the findings about what was left out


@dataclass(frozen=True)
class HeldOut:
    """The validation and test pictures of the data at `path`: digests of their decoded pixels, and
    whose they are by the `rule` of the data's `group`."""

    path: str
    pictures: frozenset[bytes]
    rule: str | None = None
    groups: frozenset[str] = frozenset()

    @classmethod
    def of(cls, found: Scan, seen: Seen, rule: str | None = None) -> HeldOut:
        """Return those of a scan, of which `seen` is what decoding found out."""
        judging = [split != "train" for split in found.splits]
        rows = np.flatnonzero(judging)
        read = [row for row in rows.tolist() if row not in seen.errors]
        whose = frozenset(owners(found.take(rows), rule)) - {""}
        return cls(found.path, frozenset(seen.pixels[row].tobytes() for row in read), rule, whose)

    def leave_out(
        self, found: Scan, seen: Seen, about: Audit, kept: np.ndarray, rule: str | None = None
    ) -> tuple[Audit, np.ndarray]:
        """Return an audit and the rows to use without these pictures, and without others of their
        groups, which `rule` or else the data's own tells; findings name them.

        Raises DataError where nothing is left to train on.
        """
        whose = owners(found.take(kept), rule or self.rule)
        known = np.array([seen.pixels[row].tobytes() in self.pictures for row in kept], bool)
        theirs = np.array([one in self.groups for one in whose], bool) & ~known
        findings = self._findings(found, kept, known, theirs, any(whose))
        left = kept[~known & ~theirs]
        if gone := set(found.splits.take(kept)) - set(found.splits.take(left)):
            few = "too few are left to learn from; add other images"
            if "train" not in gone:
                few = "none is left to validate on; raise source.data.validation, or add images"
            raise DataError(
                f"{found.path}: {len(kept) - len(left):,} of its images are in the validation or "
                f"test images of {self.path}, or of their groups, and {few}"
            )
        return replace(about, findings=(*about.findings, *findings)), left

    def _findings(
        self, found: Scan, kept: np.ndarray, known: np.ndarray, theirs: np.ndarray, told: bool
    ) -> list[Finding]:
        """Return what was left out: pictures that are `known`, and those of the same groups;
        `told` says whether any image here shows its group."""
        judging = f"the validation or test images of {self.path}"
        done = {
            "held-out": (known, f"left out: the same picture is in {judging}"),
            "held-out-group": (theirs, f"left out: others of their group are in {judging}"),
        }
        findings = [
            finding(kind, [found.files[row] for row in kept[rows].tolist()], text)
            for kind, (rows, text) in done.items()
            if rows.any()
        ]
        if self.groups and not told:
            text = (
                f"kept: nothing here says whose they are, as data.group {self.rule!r} does for "
                f"{self.path}; write source.data.group, a pattern on these names, or keep those "
                "out yourself"
            )
            findings.append(finding("no-group", [found.files[row] for row in kept], text))
        return findings
