"""Pictures of two classes that any network tells apart, and a zip of folders of them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from drawn import picture


def colour(label: str, seed: int) -> bytes:
    """Return a picture of the class red or blue, as a PNG file."""
    image = picture(seed, 48, 48)
    image.paste({"red": (200, 30, 30), "blue": (20, 40, 220)}[label], (0, 0, 48, 40))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def zip_of_colours(path: Path) -> Path:
    """Write a zip of class folders, with a picture that is there twice and a file that is none."""
    with zipfile.ZipFile(path, "w") as found:
        for label in ("red", "blue"):
            for seed in range(10):
                found.writestr(f"colours/{label}/{seed}.png", colour(label, seed))
        found.writestr("colours/red/copy.png", colour("red", 0))
        found.writestr("colours/notes.txt", "nothing")
    return path
