"""What one visitor may use; whoever asks for more is told so in a sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hf_transfer.base.errors import UserError

PREFIX = "hf-transfer-space-"  # how the name of a server's folder begins


class Refused(UserError):
    """What this page does not do, in a sentence that says why and what to do instead."""


@dataclass(frozen=True)
class Limits:
    """The most of everything: per visitor, and of all visitors together."""

    upload_bytes: int = 100 * 2**20  # of one uploaded file; the server reads no more of it
    image_bytes: int = 30 * 2**20
    image_pixels: int = 60_000_000
    entries: int = 4_000  # of one zip file
    images: int = 1_000  # that a visitor trains on
    total_bytes: int = 300 * 2**20  # of these
    classes: int = 40
    tried: int = 50  # images that are answered at once
    models: int = 8  # of one visitor
    epochs: int = 50
    steps: int = 2_000
    phases: int = 3
    image_px: int = 224
    planned_seconds: float = 300.0  # of a training, by its plan
    training_seconds: float = 900.0  # of a training, by the clock
    waiting: int = 20  # trainings that wait for their turn
    visitors: int = 200
    kept_seconds: float = 3600.0  # after a visitor's last click
    away_seconds: float = 30.0  # after the connection to a visitor's page is lost, or closed
    lease_seconds: float = 60.0  # a training whose progress nobody reads for so long is stopped
    trainings: int = 1  # at the same time

    @property
    def kept(self) -> str:
        """How long a visitor's images and models are kept, in words."""
        hours = self.kept_seconds / 3600
        return "an hour" if hours == 1 else f"{hours:g} hours"


def megabytes(count: int) -> str:
    """Return a limit in bytes in words."""
    return f"{count // 2**20} MB"


def without_paths(text: str) -> str:
    """Return a message without the folders of this server."""
    return re.sub(rf"\S*{PREFIX}[^\s:'\"]+", "your images", text)
