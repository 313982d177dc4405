"""Pictures to squares: cropped, squashed or padded, as torchvision and timm do, bit for bit."""

from __future__ import annotations

from PIL import Image

from hf_transfer.data.image_settings import FILTERS, ImageSettings

MOST = 16_000_000  # pixels of a resized picture, beyond which only its middle is resized


def square(
    image: Image.Image,
    shown: tuple[int, int],
    settings: ImageSettings,
    fill: tuple[int, ...],
) -> Image.Image:
    """Return the square of `settings.stored` pixels from which evaluation cuts its middle.

    `shown` is the picture's own width and height, before any reduced decoding; `fill` is the colour
    of borders. Resizing and rounding are those of torchvision's `Resize` and
    `CenterCrop` bit for bit, or of transformers'.
    """
    side, kind = settings.stored, FILTERS[settings.interpolation]
    if settings.crop_mode == "squash":
        return image if image.size == (side, side) else image.resize((side, side), kind)
    if settings.crop_mode == "border":
        return _bordered(image, shown, settings, fill)
    width, height = shown
    wide = side if width <= height else int(side * width / height)
    high = side if height <= width else int(side * height / width)
    inner = settings.middle(side)
    left, top = settings.middle(wide) - inner, settings.middle(high) - inner
    if wide * high > MOST:  # of a very long one; rounding may differ by a level
        across, down = image.width / wide, image.height / high
        box = (left * across, top * down, (left + side) * across, (top + side) * down)
        return image.resize((side, side), kind, box)
    if image.size != (wide, high):
        image = image.resize((wide, high), kind)
    if wide == high:
        return image
    return image.crop((left, top, left + side, top + side))


def fill_of(settings: ImageSettings) -> tuple[int, ...]:
    """Return the mean colour, 0..255, with which borders are filled."""
    return tuple(min(255, max(0, round(255 * value))) for value in settings.mean)


def _bordered(
    image: Image.Image, shown: tuple[int, int], settings: ImageSettings, fill: tuple[int, ...]
) -> Image.Image:
    """Return the whole picture in the middle of the square, as timm's `ResizeKeepRatio` and
    `CenterCropOrPad` place it."""
    side, size = settings.stored, settings.size
    longest = max(shown)
    wide, high = (max(1, round(length / (longest / side))) for length in shown)
    if image.size != (wide, high):
        image = image.resize((wide, high), FILTERS[settings.interpolation])
    inner = settings.middle(side)
    left, top = (
        inner + (size - length) // 2 if length < size else inner - settings.middle(length)
        for length in (wide, high)
    )
    whole = Image.new(image.mode, (side, side), fill if len(fill) > 1 else fill[0])
    whole.paste(image, (left, top))
    return whole
