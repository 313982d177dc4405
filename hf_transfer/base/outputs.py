"""Where results will go: looked at before the work whose results they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hf_transfer.base.errors import UserError
from hf_transfer.base.files import expanded


def folder_to_write(out: str | Path, kind: type[UserError] = UserError) -> Path:
    """Return the path of a folder that is there or can be made. Raises a `kind`."""
    out = expanded(out)
    above = next(path for path in (out, *out.parents) if os.path.lexists(path) or path == Path())
    if above != out and not above.is_dir():
        raise kind(f"--out {out} is below {above}, which is no folder; choose another one")
    if out.is_symlink() and not out.exists():
        raise kind(f"--out {out} is a link that leads nowhere; choose another folder")
    if out.exists() and not out.is_dir():
        raise kind(f"--out {out} is a file; choose another folder")
    if not os.access(above, os.W_OK):
        raise kind(f"--out {out}: you may not write in {above}; choose another folder")
    return out


def file_to_write(out: str | Path, beside: Sequence[str] = ()) -> Path:
    """Return the path of a file that can be written, or replaced with those `beside` it, which
    have its name with other suffixes. Raises UserError, also where only one of those is there."""
    out = expanded(out)
    folder_to_write(out.parent)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file")
    for other in map(out.with_suffix, beside):
        if os.path.lexists(other) and not out.exists():  # so it is not of an earlier one
            raise UserError(
                f"--out {out}: {other.name} is written beside it, and is there already; choose "
                "another name"
            )
    return out
