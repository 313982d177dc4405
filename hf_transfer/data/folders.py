"""Folders of images: one listing of what lies in them, and what their shape says of the labels."""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hf_transfer.base.errors import DataError
from hf_transfer.data.contents import begins_like_image
from hf_transfer.data.split_names import split_hinted, split_of

IMAGE_SUFFIXES = frozenset(
    (
        *(".avif", ".bmp", ".dcm", ".dib", ".dicom", ".gif", ".heic", ".heif", ".j2k", ".jfif"),
        *(".jp2", ".jpe", ".jpeg", ".jpg", ".npy", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm"),
        *(".tga", ".tif", ".tiff", ".webp"),
    )
)
LEFT_BEHIND = frozenset(  # by archivers, file servers and desktops
    ("__MACOSX", "@eaDir", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r", "lost+found")
)
FEW = 3  # names in a message


@dataclass(frozen=True)
class Listing:
    """What lies below `root`, by name in order, "/" between parts; hidden names are left out.

    `files` are regular ones, and links to none; `odd` are pipes, devices and the like; `folders`
    end in "/".
    """

    root: Path
    files: tuple[str, ...]
    folders: tuple[str, ...]
    odd: tuple[str, ...]

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The files to decode: with an image's suffix, or with none and the content of an image."""
        found = tuple(filter(self._is_image, self.files))
        return self.files if len(found) == len(self.files) else found

    def _is_image(self, name: str) -> bool:
        suffix = os.path.splitext(name.rpartition("/")[2])[1].lower()
        return suffix in IMAGE_SUFFIXES or (not suffix and _begins_like_image(self.root / name))


def list_folder(root: Path) -> Listing:
    """Return what lies below a folder; links are followed, and every folder is read once.

    Raises OSError.
    """
    files: list[str] = []
    folders: list[str] = []
    odd: list[str] = []
    begun, seen = [""], set()
    while begun:
        folder = begun.pop()
        here = os.path.join(root, folder)
        real = os.path.realpath(here)
        if real in seen:  # a link to a folder above, or a second link to one
            continue
        seen.add(real)
        inner = []
        with os.scandir(here) as entries:
            for entry in entries:
                name = f"{folder}{entry.name}"
                if not shown(entry.name):
                    continue
                if entry.is_dir():
                    inner.append(f"{name}/")
                elif entry.is_file() or not os.path.exists(entry.path):
                    files.append(name)
                else:
                    odd.append(name)
        folders += inner
        begun += sorted(inner, reverse=True)  # of two links to a folder the first name stays
    for names in (files, folders, odd):
        names.sort()
    return Listing(root, tuple(files), tuple(folders), tuple(odd))


def images_below(folder: Path) -> Iterator[Path]:
    """Yield the images below a folder that training would take, sorted. Raises OSError."""
    listing = list_folder(folder)
    return (folder / name for name in listing.images)


def shown(name: str) -> bool:
    """Return whether a name is neither hidden nor left behind by an archiver or a desktop."""
    return not name.startswith(".") and name not in LEFT_BEHIND


def _begins_like_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return stat.S_ISREG(os.fstat(file.fileno()).st_mode) and begins_like_image(
                file.read(132)
            )
    except OSError:
        return True  # decoding it says why


# --- class folders ---------------------------------------------------------------------------


@dataclass
class _Top:
    """A folder in the root: how many images lie in it directly, and in each of its folders."""

    direct: int = 0
    inner: Counter[str] = field(default_factory=Counter)


def labelled(listing: Listing) -> Iterator[tuple[str, str, str]]:
    """Yield (name, label, split) of the images in class folders; the split is "" where none is.

    Understood are cat/1.jpg, train/cat/1.jpg (and train/train/cat/1.jpg) and cat/train/1.jpg.
    Raises DataError, one line, for folders that look like splits and not like classes.
    """
    tops: dict[str, _Top] = defaultdict(_Top)
    for name in listing.images:
        parts = name.split("/")
        if len(parts) == 2:
            tops[parts[0]].direct += 1
        elif len(parts) > 2:
            tops[parts[0]].inner[parts[1]] += 1
    splits = _split_folders(listing, tops)
    class_first = not splits and _are_splits_inside(tops)
    if not splits and not class_first:
        _refuse_odd_shapes(listing, tops)
    for name in listing.images:
        top, *inner = name.split("/")
        found = None
        if class_first:
            found = _class_first(top, inner)
        elif splits:
            found = _split_first(splits.get(top, ""), inner)
        elif inner:
            found = top, ""
        if found:
            yield name, *found


def _class_first(top: str, inner: list[str]) -> tuple[str, str] | None:
    return (top, split_of(inner[0]) or "") if len(inner) > 1 else None


def _split_first(split: str, inner: list[str]) -> tuple[str, str] | None:
    while len(inner) > 2 and split_of(inner[0]) == split:
        inner = inner[1:]
    return (inner[0], split) if split and len(inner) > 1 else None


def _split_folders(listing: Listing, tops: dict[str, _Top]) -> dict[str, str]:
    """Return {folder: split} where the data comes in split folders, else {}.

    A folder is a split's if its name says so and it holds folders: `train` may be a class, too.
    Without one to train on, all folders have to be splits.
    """
    found = {name: split_of(name) for name, top in tops.items() if top.inner and split_of(name)}
    splits = {name: split for name, split in found.items() if split}
    if "train" not in splits.values() and len(splits) < len(tops):
        return {}
    for split, count in Counter(splits.values()).items():
        if count > 1:
            names = ", ".join(f"{name}/" for name, its in splits.items() if its == split)
            raise DataError(
                f"{listing.root}: {names} all look like the {split} split; merge them, or rename "
                "all but one"
            )
    classes = {inner for name in splits for inner in tops[name].inner}
    if _hint_at_splits(classes) and not _repeated(listing, splits):
        raise DataError(
            f"{listing.root}: expected one folder per class in {', '.join(splits)}; found "
            f"{_few(sorted(classes))}"
        )
    for name, top in tops.items():
        if name not in splits and not top.direct and len(classes & set(top.inner)) > 1:
            raise DataError(
                f"{listing.root}: {name}/ holds the same folders as {next(iter(splits))}/, and its "
                "name is none of a split: call it validation or test, or move it elsewhere"
            )
    return splits


def _repeated(listing: Listing, splits: dict[str, str]) -> bool:
    """Return whether classes lie in train/train/cat and the like."""
    rows = (name.split("/") for name in listing.images)
    return any(
        len(parts) > 3 and parts[0] in splits and split_of(parts[1]) == splits[parts[0]]
        for parts in rows
    )


def _are_splits_inside(tops: dict[str, _Top]) -> bool:
    """Return whether every class holds split folders and nothing else: daisy/train, daisy/val."""
    inner = {split_of(name) for top in tops.values() for name in top.inner}
    bare = any(top.direct for top in tops.values())
    return len(tops) > 1 and not bare and None not in inner and "train" in inner


def _refuse_odd_shapes(listing: Listing, tops: dict[str, _Top]) -> None:
    """Raise DataError where the folders cannot be classes."""
    root = listing.root
    folders = [name.rstrip("/") for name in listing.folders if name.count("/") == 1]
    if folders and (all(split_of(name) for name in folders) or _hint_at_splits(tops)):
        holds = any(top.inner for top in tops.values())
        remedy = (
            "give the folders these names"
            if holds
            else (
                f"which hold{'s' * (len(folders) == 1)} no folders: sort the images into one per "
                "class, or list them in a table"
            )
        )
        raise DataError(
            f"{root}: expected train with one folder per class, and perhaps validation and test; "
            f"found {_few(folders)}{'; ' if holds else ', '}{remedy}"
        )
    inner = [set(top.inner) for top in tops.values()]
    if len(tops) < 2 or any(top.direct for top in tops.values()):
        return
    common, every = set.intersection(*inner), set.union(*inner)
    if len(common) > 1 and 2 * len(common) >= len(every):
        raise DataError(
            f"{root}: {_few(tops)} hold no images, but the same folders ({_few(sorted(common))}). "
            "Are these the classes? Then call the outer folders train, validation and test, or "
            "list the images in a table"
        )


def _hint_at_splits(tops: Iterable[str]) -> bool:
    """Return whether most folders are called like different splits: train2017, val2017, more."""
    hints = [split_hinted(name) for name in tops]
    found = {split for split in hints if split}
    return "train" in found and len(found) > 1 and 2 * hints.count(None) < len(hints)


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")


def unused(listing: Listing, used: Iterable[str]) -> tuple[str, ...]:
    """Return what a listing holds apart from the images that are used, which come in order;
    of a folder without any the folder alone."""
    inside: set[str] = set()
    left, following = [], iter(used)
    after = next(following, None)
    for name in listing.files:
        while after is not None and after < name:
            after = next(following, None)
        if name != after:
            left.append(name)
        elif (folder := _above(name)) not in inside:
            inside.update(_with_all_above(folder))
    left += [f"{name} (not a regular file)" for name in listing.odd]
    bare = [
        name
        for name in listing.folders
        if name[:-1] not in inside and (name.count("/") == 1 or _above(name[:-1]) in inside)
    ]
    return tuple(sorted(bare + [n for n in left if "/" not in n or _above(n) in inside]))


def _above(name: str) -> str:
    return name.rpartition("/")[0]


def _with_all_above(folder: str) -> Iterator[str]:
    while folder:
        yield folder
        folder = _above(folder)
