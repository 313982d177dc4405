"""A loss that is not finite any more, or that explodes."""

from __future__ import annotations

from typing import Any

import torch

from hf_transfer.base.errors import UserError

EXPLODED = 1e3  # times the first loss that was logged, or 1: what comes next is no number


class DivergedError(UserError):
    """The loss exploded, or is no number any more: the rate is too high, or the data bad."""


def _finite(value: Any) -> bool:
    """Return whether a tensor's numbers are all finite; a sharded one's are this process's."""
    local = getattr(value, "to_local", lambda: value)()
    return not isinstance(local, torch.Tensor) or bool(torch.isfinite(local).all())
