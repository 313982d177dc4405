"""Labels that were made wrong are found; right ones are left in peace; nothing is dropped."""

import numpy as np

from hf_transfer.deciding.folds import folds
from hf_transfer.deciding.heads import honest, out_of_fold
from hf_transfer.deciding.label_noise import label_findings, suspects


def told(apart: float, wrong: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    true = np.arange(200) % 4
    features = np.eye(4)[true] * apart + rng.normal(0, 0.3, (200, 4))
    labels = true.copy()
    changed = rng.permutation(200)[:wrong]
    labels[changed] = (true[changed] + 1) % 4
    fold = folds(labels, repeats=1)[0]
    logits = honest(out_of_fold(features, labels, 4, fold, (0.1, 1.0)), labels, fold)
    chances = np.exp(logits - logits.max(1, keepdims=True))
    return suspects(chances / chances.sum(1, keepdims=True), labels), changed, true


def test_wrong_labels_are_found_with_the_right_ones():
    found, changed, true = told(1.5, 12)
    rows = {one.row for one in found}
    assert len(rows & set(changed.tolist())) >= 9
    assert len(rows - set(changed.tolist())) <= 2
    assert all(one.likely == true[one.row] for one in found if one.row in changed)


def test_clean_labels_are_hardly_doubted():
    found, _, _ = told(1.5, 0)
    assert len(found) <= 2


def test_a_head_that_knows_nothing_doubts_nothing():
    found, _, _ = told(0.0, 0)
    assert not found


def test_the_finding_lists_the_files_and_says_that_they_are_kept():
    found, _, _ = told(1.5, 12)
    files = [f"{row}.png" for row in range(200)]
    (one,) = label_findings(found, files, ("a", "b", "c", "d"))
    assert one.count == len(found)
    assert one.files[0] == f"{found[0].row}.png"
    assert one.done.startswith("kept")
    assert label_findings((), files, ("a",)) == ()
