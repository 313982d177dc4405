"""Labelled images, ready to train on: decoded once, checked once, handed out a batch at a time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.base.errors import DataError, UserError
from hf_transfer.base.machine import trim
from hf_transfer.base.signatures import checked
from hf_transfer.data.audit import Audit, audit
from hf_transfer.data.held_out import HeldOut
from hf_transfer.data.image_settings import ImageSettings, with_dicom
from hf_transfer.data.pixels import LivePixels, Seen, StoredPixels, open_pixels
from hf_transfer.data.scale import Scale
from hf_transfer.data.sources import SPLITS, Scan, limited, scan
from hf_transfer.data.unlabelled import neighbours
from hf_transfer.recipe.specs import DataSpec
from hf_transfer.recipe.tasks import TASKS

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

SPARE = 2  # images per class decoded beyond a limit, and 2% of it
Pixels = np.ndarray | StoredPixels | LivePixels


class ImageSet:
    """Labelled images, decoded: `pixels` uint8 (N, S', S', C), `labels`, `names` of the classes,
    `files` their names relative to the data (empty for images from memory).

    `labels` are int64 (N,): classes; or float32 (N, names): 0 and 1 of several labels, or numbers.
    With a `scale` the numbers are standard ones, which it brings into the targets' units. `groups`
    (N,) are numbers of the groups that images belong to, None where there are none.

    An item is {"pixels", "labels", "index"}; a list of indices gives one batch of the same, which
    `collate` hands on unchanged. `index` is the place in this set.
    """

    def __init__(
        self,
        pixels: Pixels,
        labels: np.ndarray,
        names: Sequence[str],
        files: Sequence[str] = (),
        scale: Scale | None = None,
        groups: np.ndarray | None = None,
    ) -> None:
        dtype = np.int64 if np.ndim(labels) == 1 else np.float32
        self.pixels, self.labels = pixels, np.asarray(labels, dtype=dtype)
        self.names, self.scale = tuple(names), scale
        self.files, self.groups = tuple(files), groups

    @classmethod
    def from_arrays(
        cls, pixels: np.ndarray, labels: Sequence[int] | np.ndarray, names: Sequence[str] = ()
    ) -> ImageSet:
        """Return a set of images in memory: uint8 (N, S, S, C), or (N, S, S) for one channel.

        `labels` are places in `names`, or floats with a column for each name; without names they
        are called "0", "1", ... Raises UserError if shapes, dtypes or labels do not fit.
        """
        pixels, labels = np.asarray(pixels), np.asarray(labels)
        pixels = pixels[..., None] if pixels.ndim == 3 else pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2]:
            raise UserError(
                f"pixels are {pixels.dtype} {pixels.shape}; give uint8 (N, S, S, C): squares, "
                "channels last, values from 0 to 255"
            )
        if labels.ndim == 2:
            names = tuple(names) or tuple(map(str, range(labels.shape[1])))
            if labels.shape != (len(pixels), len(names)):
                raise UserError(f"labels are {labels.shape}; give {len(pixels), len(names)}")
            return cls(pixels, labels, names)
        if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
            raise UserError(
                f"labels are {labels.dtype} {labels.shape}; give {len(pixels)} whole numbers, one "
                "for each image: the place of its label in names"
            )
        names = tuple(names) or tuple(map(str, range(int(labels.max(initial=0)) + 1)))
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
            raise UserError(
                f"labels run from {labels.min()} to {labels.max()}, and there are {len(names)} "
                "names; a label is the place of its name, from 0 on"
            )
        return cls(pixels, labels, names)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one image: pixels uint8 (S', S', C), its label and its index."""
        if isinstance(index, slice):
            raise UserError(
                "an ImageSet gives one image at a time; for several use subset(range(…))"
            )
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        import torch

        index = index % len(self)
        label = self.labels[index]
        return {
            "pixels": torch.from_numpy(np.array(self.pixels[index])),
            "labels": int(label) if self.labels.ndim == 1 else torch.from_numpy(label),
            "index": index,
        }

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return one batch: pixels uint8 (B, S', S', C), labels and indices (B, …)."""
        import torch

        rows = np.asarray(indices, dtype=np.int64)
        return {
            "pixels": torch.from_numpy(self.pixels[rows]),
            "labels": torch.from_numpy(self.labels[rows]),
            "index": torch.from_numpy(rows),
        }

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSet:
        """Return the set of the images in these places; their indices count from 0 again."""
        rows = np.asarray(indices, dtype=np.int64)
        pixels = self.pixels
        taken = pixels[rows] if isinstance(pixels, np.ndarray) else pixels.take(rows)
        files = [self.files[row] for row in rows.tolist()] if self.files else ()
        groups = None if self.groups is None else self.groups[rows]
        return type(self)(taken, self.labels[rows], self.names, files, self.scale, groups)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Images per class, or per label or target, in the order of the names."""
        if self.labels.ndim == 2:
            told = self.labels != 0 if self.scale is None else np.ones_like(self.labels)
            return tuple(told.sum(axis=0).astype(int).tolist())
        return tuple(np.bincount(self.labels, minlength=len(self.names)).tolist())


class FrameSet(ImageSet):
    """Frames of videos in the order of time, a folder each: an item also has "next", the pixels of
    the frame after it; the last one of a folder has the frame before it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.next = neighbours(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one frame, with the pixels of its neighbour."""
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return one batch of frames, with the pixels of their neighbours."""
        import torch

        found = super().__getitems__(indices)
        return {**found, "next": torch.from_numpy(self.pixels[self.next[found["index"].numpy()]])}


def joined(train: ImageSet, validation: ImageSet) -> ImageSet:
    """Return the images of both, which lie in the same store."""
    one, two = train.pixels, validation.pixels
    assert not isinstance(one, np.ndarray)
    assert not isinstance(two, np.ndarray)
    pixels: Pixels = replace(one, rows=np.concatenate([one.rows, two.rows]))
    labels = np.concatenate([train.labels, validation.labels])
    groups = None if train.groups is None else np.concatenate([train.groups, validation.groups])
    files = (*train.files, *validation.files)
    return ImageSet(pixels, labels, train.names, files, train.scale, groups)


@dataclass(frozen=True)
class ImageData:
    """A data set in its splits, with what the audit found.

    Numbers to be told are standard ones: `scale`, of the training images, gives their units.
    `fingerprint` is a sha256 over the names, labels and file contents of all images in use; the
    same images have the same one, whatever the split, the image size or the folder's place.
    """

    labels: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet | None
    audit: Audit
    fingerprint: str
    path: str
    task: str = "classification"
    scale: Scale | None = None

    @property
    def splits(self) -> dict[str, ImageSet]:
        """The sets of images that there are, by the name of their split."""
        sets = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: images for split, images in sets.items() if images is not None}

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images per class (or label, or target) of each split that there is."""
        return {
            split: dict(zip(self.labels, images.class_counts, strict=True))
            for split, images in self.splits.items()
        }


@checked
def load_data(
    spec: DataSpec,
    settings: ImageSettings,
    seed: int = 0,
    cache_dir: Path | None = None,
    limit_bytes: int | None = None,
    task: str = "classification",
    *,
    read_all: bool = False,
    listed: Scan | None = None,
    without: HeldOut | None = None,
    folds: bool = False,
) -> ImageData:
    """Return a recipe's data: found, split, decoded (or read from the store), audited.

    `spec` says which images, `settings` (as `model.backbone.image`) how they become pixels, `seed`
    which splits are drawn, and `task` what labels are. Decoded pixels are kept under `cache_dir`
    (by default in the cache) unless they take more than `limit_bytes`. With `read_all` the content
    of every file is read again, as a resumed run needs to prove that its images are the same.
    `listed` is what `list_source` has found. Images that show a picture of `without`, or are of its
    groups, are left out, and findings say so. With `folds` of the training images validating, there
    need be no validation images.
    Raises DataError, one line.
    """
    if not isinstance(spec, DataSpec):
        raise DataError(
            f"data {str(spec)!r}: pass DataSpec(path=…), which also says how to split it"
        )
    settings = with_dicom(settings, spec.window, spec.frame)
    found = scan(_with_spare(spec), seed, task, listed)
    pixels, seen = open_pixels(found, settings, cache_dir, limit_bytes, read_all=read_all)
    about, kept = audit(found, seen, settings, spec, folds)
    if without is not None:
        about, kept = without.leave_out(found, seen, about, kept, spec.group)
    kept = kept[limited(found.take(kept), spec, seed)]
    for finding in about.findings:
        few = "; ".join(finding.files[:3]) + ("; ..." if len(finding.files) > 3 else "")
        which = f" ({few})" if few else ""
        logger.info("%s: %d%s: %s", finding.kind, finding.count, which, finding.done)
    targets, splits = _labels(found), found.splits.take(kept)
    scale = None
    if task == "regression":
        scale = Scale.of(targets[kept[splits.where("train")]], found.labels)
        targets = scale.to_standard(targets)
    sets = {}
    for split in SPLITS:
        rows = kept[splits.where(split)]
        files = [found.files[row] for row in rows.tolist()]
        groups = None if found.groups is None else found.groups.codes[rows]
        kind = FrameSet if TASKS[task].video else ImageSet
        sets[split] = kind(pixels.take(rows), targets[rows], found.labels, files, scale, groups)
    if TASKS[task].known:
        sets["validation"] = sets["train"].subset(np.arange(len(sets["validation"])))
    fingerprint = _fingerprint(found, seen, kept)
    trim()
    return ImageData(
        labels=found.labels,
        train=sets["train"],
        validation=sets["validation"],
        test=sets["test"] if len(sets["test"]) else None,
        audit=about,
        fingerprint=fingerprint,
        path=found.path,
        task=task,
        scale=scale,
    )


def held_out(
    spec: DataSpec, settings: ImageSettings, seed: int = 0, task: str = "classification"
) -> HeldOut:
    """Return the pictures in validation and test of a recipe's data, as `load_data` splits it."""
    found = scan(_with_spare(spec), seed, task)
    _, seen = open_pixels(found, with_dicom(settings, spec.window, spec.frame))
    return HeldOut.of(found, seen, spec.group)


def _labels(found: Scan) -> np.ndarray:
    """Return targets as numbers: classes (N,), or (N, labels) of 0 and 1, or numbers (N, T)."""
    if found.task != "multi_label":
        return np.array(found.targets.table)[found.targets.codes]
    labels = np.zeros((len(found.files), len(found.labels)), np.float32)
    for row, places in enumerate(found.targets):
        labels[row, list(places)] = 1
    return labels


def _with_spare(spec: DataSpec) -> DataSpec:
    """Return the recipe's data with a few images more, to replace those that the audit takes."""
    spare = {
        name: limit + SPARE + limit // 50
        for name in ("train_per_class", "validation_per_class")
        if (limit := getattr(spec, name)) is not None
    }
    return replace(spec, **spare)


def _fingerprint(found: Scan, seen: Seen, rows: np.ndarray) -> str:
    digest = hashlib.sha256()
    for row in rows:
        label = found.shown(found.targets[row])
        digest.update(f"{found.files[row]}\0{label}\0".encode(errors="surrogateescape"))
        digest.update(seen.files[row].tobytes())
    return digest.hexdigest()
