"""Pixels to the model's input: normalised for evaluation, or varied, a whole batch at a time.

All randomness is a pure function of (seed, epoch, index): an image's variation does not depend on
its neighbours in the batch, on their order, on workers, on ranks or on what ran before.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_transfer.data.image_settings import ImageSettings
from hf_transfer.inputs.model_input import central, check_pixels, normalised
from hf_transfer.recipe.specs import Augment

# What each column of the uniform numbers decides; a column keeps its meaning whatever is on.
_AREA, _ASPECT, _LEFT, _TOP, _FLIP, _VERTICAL, _ANGLE, _LIGHT, _CONTRAST, _SATURATION = range(10)
_ERASE, _ERASE_AREA, _ERASE_ASPECT, _ERASE_LEFT, _ERASE_TOP, _COLUMNS = range(10, 16)
_MIX_STREAM = 1
_ASPECTS = (3 / 4, 4 / 3)
_ERASED = (0.02, 1 / 3)
_ERASED_ASPECTS = (0.3, 1 / 0.3)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's conversion to gray


def uniforms(index: Tensor, epoch: int, seed: int, columns: int, stream: int = 0) -> Tensor:
    """Return float64 (B, columns) in [0, 1), a pure function of (seed, epoch, index, column).

    Counter-based: no generator, no state, the same on every device. Source: the finaliser of
    splitmix64 (Steele, Lea, Flood 2014), applied to each coordinate in turn.
    """
    key = torch.tensor(_signed(_mixed(_mixed(_mixed(seed) + epoch) + stream)), device=index.device)
    rows = _hash(key + index.to(torch.int64))
    bits = _hash(rows[:, None] + torch.arange(columns, device=index.device))
    return ((bits >> 11) & (2**53 - 1)).to(torch.float64) * 2.0**-53


def augment(
    pixels: Tensor, index: Tensor, epoch: int, seed: int, augment: Augment, settings: ImageSettings
) -> Tensor:
    """Return float32 (B, C, size, size) from uint8 (B, S', S', C), varied as `augment` says.

    A pure function of (seed, epoch, index) and the pixels; `index` is int64 (B,). Crop, flips and
    rotation are one bilinear sampling. With everything off it equals `to_model_input`.
    """
    check_pixels(pixels, settings)
    index = index.to(pixels.device)
    u = uniforms(index, epoch, seed, _COLUMNS)
    if augment.crop or augment.rotate:
        x = _warp(pixels, u, augment, settings)
    else:
        x = _flip(central(pixels, settings), u, augment)
    if augment.color:
        x = _recolor(x, pixels, u, augment.color)
    x = normalised(x, settings)
    return _erase(x, u, augment.erase) if augment.erase else x


def mix(
    x: Tensor,
    labels: Tensor,
    index: Tensor,
    epoch: int,
    seed: int,
    *,
    mixup: float,
    cutmix: float,
    classes: int,
    images: int,
    partner: Callable[[Tensor, int], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Return mixed images (B, C, H, W) and soft targets (B, classes).

    Each image's partner, one of the data set's `images`, is a pure function of (seed, epoch,
    index); `partner(indices, epoch)` returns their pixels and labels. `mixup` and `cutmix` are the
    parameters of Beta(a, a), 0 = off; with both on, each image takes either with equal chance.
    Sources: arXiv:1710.09412, arXiv:1905.04899.
    """
    device = x.device
    u = uniforms(index.to(device), epoch, seed, 5, _MIX_STREAM)
    others = (u[:, 0] * images).to(torch.int64)
    other_x, other_labels = partner(others, epoch)
    cut = u[:, 1] < (0.0 if not cutmix else 0.5 if mixup else 1.0)
    share = torch.where(cut, _beta(u[:, 2], cutmix or 1.0), _beta(u[:, 2], mixup or 1.0))
    boxes = _box(1 - share, torch.ones_like(share), u[:, 3], u[:, 4], x.shape[-1], clip=True)
    inside = _inside(boxes, x.shape[-1])
    share = torch.where(cut, 1 - inside.double().mean((1, 2, 3)), share)
    blend = torch.where(cut[:, None, None, None], ~inside, share[:, None, None, None]).to(x.dtype)
    mixed = x * blend + other_x.to(x) * (1 - blend)
    share = share.to(x.dtype)[:, None]
    own, other = (_one_hot(each, classes).to(x) for each in (labels, other_labels))
    return mixed, own * share + other * (1 - share)


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return (B, classes) of 0 and 1; several labels at once are so already."""
    return labels if labels.ndim == 2 else F.one_hot(labels, classes)


# --- randomness ------------------------------------------------------------------------------


def _mixed(number: int) -> int:
    """Return splitmix64's finaliser of a Python integer, in 0..2**64-1."""
    z = (number * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _hash(z: Tensor) -> Tensor:
    """Return the same finaliser of int64 numbers, whose products wrap around."""
    z = z * _signed(0x9E3779B97F4A7C15) + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & (2 ** (64 - bits) - 1)


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + u * (high - low)


def _beta(u: Tensor, a: float) -> Tensor:
    """Return the quantiles of Beta(a, a) at u, on u's device."""
    from scipy.special import betaincinv  # comes with scikit-learn

    return torch.from_numpy(betaincinv(a, a, u.cpu().numpy())).to(u.device)


# --- geometry --------------------------------------------------------------------------------


def _flip(x: Tensor, u: Tensor, augment: Augment) -> Tensor:
    if augment.flip:
        x = torch.where((u[:, _FLIP] < 0.5)[:, None, None, None], x.flip(-1), x)
    if augment.vertical_flip:
        x = torch.where((u[:, _VERTICAL] < 0.5)[:, None, None, None], x.flip(-2), x)
    return x


def _warp(pixels: Tensor, u: Tensor, augment: Augment, settings: ImageSettings) -> Tensor:
    """Return float32 (B, C, size, size) in 0..1: crop, flips and rotation as one sampling."""
    side, size = pixels.shape[1], settings.size
    if augment.crop:
        area = _between(u[:, _AREA], *augment.crop)
        aspect = _between(u[:, _ASPECT], *map(math.log, _ASPECTS)).exp()
        wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        center_x = (u[:, _LEFT] * 2 - 1) * (1 - wide)
        center_y = (u[:, _TOP] * 2 - 1) * (1 - high)
    else:
        wide = high = torch.full_like(u[:, 0], size / side)
        center_x = center_y = torch.full_like(wide, (2 * settings.middle(side) + size) / side - 1)
    angle = torch.deg2rad((u[:, _ANGLE] * 2 - 1) * augment.rotate)
    cos, sin = angle.cos(), angle.sin()
    if augment.flip:
        wide = torch.where(u[:, _FLIP] < 0.5, -wide, wide)
    if augment.vertical_flip:
        high = torch.where(u[:, _VERTICAL] < 0.5, -high, high)
    # In float64 until here: rounded to float32, the vectorised functions agree for every B.
    rows = (cos * wide, -sin * high, center_x, sin * wide, cos * high, center_y)
    a, b, c, d, e, f = (row.to(torch.float32)[:, None, None] for row in rows)
    steps = (torch.arange(size, device=pixels.device, dtype=torch.float32) * 2 + 1) / size - 1
    across, down = steps[None, None, :], steps[None, :, None]
    grid = torch.stack((across * a + down * b + c, across * d + down * e + f), -1)
    x = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    beyond = "reflection" if augment.rotate else "border"  # a crop stays inside: the faster one
    x = F.grid_sample(x, grid, "bilinear", beyond, align_corners=False)
    return x.div_(255)


# --- colour ----------------------------------------------------------------------------------


def _recolor(x: Tensor, pixels: Tensor, u: Tensor, strength: float) -> Tensor:
    """Change brightness, contrast and saturation by factors in 1 ± strength; alpha is left alone.

    Contrast turns about the mean gray of the stored image: a sum of integers, so exact, whatever
    the batch.
    """
    color = x[:, :3] if x.shape[1] == 4 else x
    low, high = max(0.0, 1 - strength), 1 + strength
    light, contrast, saturation = (
        _between(u[:, column], low, high) for column in (_LIGHT, _CONTRAST, _SATURATION)
    )
    area = pixels.shape[1] * pixels.shape[2] * 255
    means = pixels.flatten(1, 2).sum(1, dtype=torch.int64)[:, : color.shape[1]].double() / area
    gray = _gray(means[:, :, None, None])
    light, contrast, saturation = (v[:, None, None, None] for v in (light, contrast, saturation))
    color.mul_((light * contrast).float()).add_((light * (1 - contrast) * gray).float())
    if color.shape[1] == 3:
        gray = _gray(color)
        color.mul_(saturation.float()).add_(gray * (1 - saturation).float())
    color.clamp_(0, 1)
    return x


def _gray(x: Tensor) -> Tensor:
    """Return (B, 1, H, W): the luma of colours (B, 3, H, W), of other channels their mean."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return x[:, :1] * _LUMA[0] + x[:, 1:2] * _LUMA[1] + x[:, 2:3] * _LUMA[2]


# --- boxes -----------------------------------------------------------------------------------


def _erase(x: Tensor, u: Tensor, probability: float) -> Tensor:
    """Set a random box to the mean colour in a share of the images. Source: arXiv:1708.04896."""
    area = _between(u[:, _ERASE_AREA], *_ERASED)
    aspect = _between(u[:, _ERASE_ASPECT], *map(math.log, _ERASED_ASPECTS)).exp()
    area = torch.where(u[:, _ERASE] < probability, area, torch.zeros_like(area))
    boxes = _box(area, aspect, u[:, _ERASE_LEFT], u[:, _ERASE_TOP], x.shape[-1], clip=False)
    return x.mul_(~_inside(boxes, x.shape[-1]))


def _box(
    area: Tensor, aspect: Tensor, x: Tensor, y: Tensor, size: int, clip: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (left, top, right, bottom) in whole pixels, right and bottom excluded, each (B,).

    `area` is a share of the image; x and y place the box inside the image, or with `clip` its
    centre anywhere, the rest being cut off.
    """
    wide = ((area * aspect).sqrt().clamp(max=1) * size).round()
    high = ((area / aspect).sqrt().clamp(max=1) * size).round()
    if clip:
        left, top = (x * size - wide / 2).round(), (y * size - high / 2).round()
    else:
        left, top = (x * (size - wide + 1)).floor(), (y * (size - high + 1)).floor()
    return left, top, left + wide, top + high


def _inside(box: tuple[Tensor, Tensor, Tensor, Tensor], size: int) -> Tensor:
    """Return bool (B, 1, size, size), true inside each image's box."""
    left, top, right, bottom = (edge[:, None] for edge in box)
    at = torch.arange(size, device=left.device)
    across, down = (at >= left) & (at < right), (at >= top) & (at < bottom)
    return (down[:, :, None] & across[:, None, :])[:, None]
