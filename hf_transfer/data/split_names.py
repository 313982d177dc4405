"""Names of splits as people write them: train_images, Training Set, valset, hold-out, …"""

from __future__ import annotations

import re
from functools import lru_cache

WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("validation", "validate", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("eval", "evaluation", "evaluate"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout"), "test"),
}
AFFIXES = (  # say nothing: train_set, test-images, val_data
    "datasets", "dataset", "sets", "set", "data", "images", "image", "imgs", "img", "pictures",
    "photos", "pics", "splits", "split", "folder", "files", "full", "all",
)  # fmt: skip


@lru_cache(maxsize=4096)
def split_of(name: str) -> str | None:
    """Return "train", "validation" or "test" where a name means one, whatever goes with it."""
    words = [word for word in _words(name) if word not in AFFIXES]
    if len(words) == 2 and "".join(words) in WORDS:  # hold-out
        words = ["".join(words)]
    if len(words) != 1 or re.search(r"\d", name):
        return None
    return _meant(words[0])


def split_hinted(name: str) -> str | None:
    """Return the split that one word of a name means, whatever else it says: train2017, test1."""
    return next((split for word in _words(name) if (split := _meant(word))), None)


def _words(name: str) -> list[str]:
    letters = re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()
    return re.findall(r"[^\W\d_]+", letters)


def _meant(word: str) -> str | None:
    for affix in AFFIXES:
        stem = word.removesuffix(affix).removeprefix(affix)
        if stem != word and stem in WORDS:
            return WORDS[stem]
    return WORDS.get(word)
