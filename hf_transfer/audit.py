"""What the data holds that a careful person would want to know, and what was done about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One kind of finding: how many files (`count`), the first of their names, what was done."""

    kind: str
    count: int
    files: tuple[str, ...]
    done: str


@dataclass(frozen=True)
class Audit:
    """All findings about a data set, in a fixed order of kinds."""

    findings: tuple[Finding, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what `report.json` holds: {"findings": [{kind, count, files, done}]}."""
        return {
            "findings": [
                {"kind": f.kind, "count": f.count, "files": list(f.files), "done": f.done}
                for f in self.findings
            ]
        }
