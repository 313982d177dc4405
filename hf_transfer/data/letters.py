"""Letters: a source task whose labels cost nothing, drawn from the fonts that matplotlib carries.

Every letter is rendered once per font and stroke; each image then is one random bending, slant,
thickness, scan and noise of one of these, all images at once in numpy.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from hf_transfer.base import bars
from hf_transfer.base.errors import UserError
from hf_transfer.base.files import written_folder
from hf_transfer.recipe.specs import LettersSpec

# Capitals, and the small letters that are not merely smaller capitals.
LETTERS = string.ascii_uppercase + "abdefghnqrt"
# All that hold the whole alphabet, the most different first; matplotlib's other files hold symbols
# or other scripts.
FONTS = (
    "DejaVuSans", "STIXGeneral", "cmtt10", "DejaVuSerif-Bold", "STIXGeneralItalic", "cmss10",
    "DejaVuSansMono-Oblique", "cmr10", "DejaVuSans-BoldOblique", "DejaVuSerif-Italic", "cmti10",
    "STIXGeneralBol", "DejaVuSansMono", "cmb10", "cmmi10", "DejaVuSerif", "DejaVuSans-Oblique",
    "STIXGeneralBolIta", "DejaVuSansMono-Bold", "DejaVuSans-Bold", "DejaVuSerif-BoldItalic",
    "DejaVuSansMono-BoldOblique",
)  # fmt: skip
STROKES = (0, 2, 4)  # pixels that the pen adds on each side of a stroke, at POINTS
POINTS = 96  # size at which a letter is rendered, before it is fitted into its box
BOX, FILL = 64, 44  # side of a rendered letter's box, and of the letter in it
SOFTNESS = 1.0  # blur of a rendered letter, so that a threshold on it moves the stroke's edge
CHUNK = 1000  # images bent at a time, to stay in the processor's cache
BEND = 0.1  # standard deviation of the bending, in halves of an image
COARSE, COARSE_PX = 0.5, 8  # share of the images that are scanned coarsely, and how coarsely

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


def letters_set(
    spec: LettersSpec, image_px: int = 32, seed: int = 0
) -> tuple[Bytes, Ints, tuple[str, ...]]:
    """Return white letters on black: pixels (N, S, S, 3), labels (N,) and the letters' names.

    S is `image_px`; N is `spec.images`, or what is left when every letter comes equally often. A
    function of the arguments alone. Raises UserError for a spec that cannot be drawn.
    """
    if not 1 <= spec.fonts <= len(FONTS):
        raise UserError(f"letters: fonts is {spec.fonts}; matplotlib carries 1 to {len(FONTS)}")
    if spec.images < len(LETTERS):
        raise UserError(f"letters: images is {spec.images}; one a letter is {len(LETTERS)}")
    rng = np.random.default_rng(seed)
    rendered = render(FONTS[: spec.fonts])
    labels = np.tile(np.arange(len(LETTERS)), spec.images // len(LETTERS))
    which = labels * rendered.shape[1] + rng.integers(0, rendered.shape[1], len(labels))
    looks = _looks(rng, len(labels))
    pixels = np.empty((len(labels), image_px, image_px), np.uint8)
    for start in bars.shown(range(0, len(labels), CHUNK), "Drawing letters", "thousands"):
        rows = slice(start, start + CHUNK)
        look = {name: values[rows] for name, values in looks.items()}
        x, y = _bent(look, image_px)
        ink = _sampled(rendered.reshape(-1), which[rows], x, y)
        pixels[rows] = _photographed(ink, look, rng)
    return np.repeat(pixels[..., None], 3, axis=3), labels, tuple(LETTERS)


def write_letters(spec: LettersSpec, folder: Path, seed: int = 0) -> Path:
    """Write letters as a labelled folder of PNG files, whole or not at all; return the folder.

    Classes are `upper-A` and `lower-a`: some file systems do not tell A from a. A folder that is
    there already is left as it is. Raises UserError for a spec that cannot be drawn.
    """
    if folder.is_dir():
        return folder
    pixels, labels, names = letters_set(spec, seed=seed)
    with written_folder(folder, "letters", synced=False) as aside:
        places = [aside / f"{'upper' if name.isupper() else 'lower'}-{name}" for name in names]
        for place in places:
            place.mkdir()
        for row, label in enumerate(bars.shown(labels.tolist(), "Writing letters")):
            Image.fromarray(pixels[row, :, :, 0]).save(places[label] / f"{row:06d}.png")
    return folder


def contact_sheet(pixels: Bytes, labels: Ints, rows: int = 12) -> Image.Image:
    """Return one picture with a column for each label and its first `rows` images below another."""
    columns = []
    for label in np.unique(labels):
        images = list(pixels[labels == label][:rows])
        images += [np.zeros_like(pixels[0])] * (rows - len(images))
        columns.append(np.concatenate(images))
    return Image.fromarray(np.concatenate(columns, axis=1))


# --- drawing --------------------------------------------------------------------------------


def render(fonts: Sequence[str]) -> Bytes:
    """Return LETTERS in every font and stroke, uint8 (letters, fonts * strokes, BOX, BOX).

    Each fills FILL pixels of its box in height or width. Raises UserError if a font is missing.
    """
    opened = [ImageFont.truetype(str(path), POINTS) for path in font_files(fonts)]
    return np.array(
        [
            [_boxed(letter, font, stroke) for font in opened for stroke in STROKES]
            for letter in LETTERS
        ]
    )


def font_files(fonts: Sequence[str]) -> tuple[Path, ...]:
    """Return the fonts' paths in the installed matplotlib. Raises UserError if one is missing."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = tuple(folder / f"{name}.ttf" for name in fonts)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"matplotlib's fonts lack {', '.join(missing)}; reinstall matplotlib: "
            "pip install --force-reinstall matplotlib"
        )
    return paths


def _boxed(letter: str, font: ImageFont.FreeTypeFont, stroke: int) -> Bytes:
    left, top, right, bottom = font.getbbox(letter, stroke_width=stroke)
    drawn = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(drawn).text((-left, -top), letter, fill=255, font=font, stroke_width=stroke)
    scale = FILL / max(drawn.size)
    width, height = (max(1, round(side * scale)) for side in drawn.size)
    box = Image.new("L", (BOX, BOX))
    box.paste(
        drawn.resize((width, height), Image.Resampling.BOX),
        ((BOX - width) // 2, (BOX - height) // 2),
    )
    return np.asarray(box.filter(ImageFilter.GaussianBlur(SOFTNESS)))


# --- deforming ------------------------------------------------------------------------------


def _looks(rng: np.random.Generator, n: int) -> dict[str, Floats]:
    """Return what is random about each image, float32 (n, 1, 1) but the bending (n, 2, 4, 4)."""

    def between(low: float, high: float) -> Floats:
        return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

    return {
        "angle": np.deg2rad(between(-15, 15)),
        "slant": between(-0.4, 0.4),
        "wide": between(0.65, 1.1),
        "high": between(0.85, 1.1),
        "left": between(-0.08, 0.08),
        "up": between(-0.06, 0.06),
        "bending": rng.normal(0, BEND, (n, 2, 4, 4)).astype(np.float32),
        "edge": between(0.25, 0.5),
        "bright": between(0.75, 1.0),
        "noise": between(0.0, 0.06),
        "coarse": (between(0, 1) < COARSE).astype(np.float32),
    }


def _bent(look: dict[str, Floats], image_px: int) -> tuple[Floats, Floats]:
    """Return where each pixel looks in its letter's box: x and y (n, S, S), in the box's pixels."""
    steps = (np.arange(image_px, dtype=np.float32) + 0.5) / image_px * 2 - 1
    smooth = _resizing(4, image_px, Image.Resampling.BICUBIC)
    shift = smooth @ look["bending"] @ smooth.T
    x = steps[None, None, :] - look["left"] + shift[:, 0]
    y = steps[None, :, None] - look["up"] + shift[:, 1]
    cos, sin = np.cos(look["angle"]), np.sin(look["angle"])
    x, y = cos * x + sin * y, cos * y - sin * x
    x = (x + look["slant"] * y) / look["wide"]
    y = y / look["high"]
    return _in_box(x), _in_box(y)


def _in_box(place: NDArray[np.floating[Any]]) -> Floats:
    pixels: Floats = (place * (FILL / 2) + (BOX - 1) / 2).astype(np.float32)
    return pixels


def _sampled(rendered: Bytes, which: Ints, x: Floats, y: Floats) -> Floats:
    """Return the rendered letters at x and y, in 0..1, bilinear; outside a box is its margin."""
    x, y = np.clip(x, 0, BOX - 1.001), np.clip(y, 0, BOX - 1.001)
    column, row = x.astype(np.int64), y.astype(np.int64)
    right, below = x - column, y - row
    at = which[:, None, None] * (BOX * BOX) + row * BOX + column
    upper = rendered[at] * (1 - right) + rendered[at + 1] * right
    lower = rendered[at + BOX] * (1 - right) + rendered[at + BOX + 1] * right
    mixed: Floats = ((upper * (1 - below) + lower * below) / 255).astype(np.float32)
    return mixed


def _photographed(ink: Floats, look: dict[str, Floats], rng: np.random.Generator) -> Bytes:
    """Return pixels of the letters: edges set, some scanned coarsely, lit, with noise."""
    ink = np.clip((ink - look["edge"]) * 6 + 0.5, 0, 1)
    image_px = ink.shape[-1]
    coarse = _resizing(COARSE_PX, image_px, Image.Resampling.BICUBIC) @ _resizing(
        image_px, COARSE_PX, Image.Resampling.BOX
    )
    ink = np.where(look["coarse"] > 0, coarse @ ink @ coarse.T, ink)
    ink *= look["bright"] / np.maximum(ink.max(axis=(1, 2), keepdims=True), 0.1)
    ink += rng.standard_normal(ink.shape, dtype=np.float32) * look["noise"]
    return np.clip(ink * 255, 0, 255).astype(np.uint8)


def _resizing(size: int, to: int, kind: Image.Resampling) -> Floats:
    """Return the matrix (to, size) by which Pillow resizes a row of `size` pixels."""
    rows = [
        np.asarray(Image.fromarray(row[None]).resize((to, 1), kind))[0]
        for row in np.eye(size, dtype=np.float32)
    ]
    return np.stack(rows, axis=1)
