"""How well a pretext is solved."""

import numpy as np

from hf_transfer.results.metrics.pretexts import AMONG, found_metrics, told_metrics


def test_what_is_told_is_the_share_of_right_answers():
    outputs = np.eye(4)[[0, 1, 2, 3]]
    assert told_metrics(outputs, [0, 1, 2, 0]) == {"n": 4, "accuracy": 0.75}


def test_a_picture_is_found_where_the_other_one_is_the_nearest_of_a_batch():
    one = np.random.default_rng(0).normal(size=(AMONG + 5, 16))
    assert found_metrics(np.concatenate([one, one * 3], 1), one)["accuracy"] == 1.0
    others = np.roll(one, 1, axis=0)
    assert found_metrics(np.concatenate([one, others], 1), one)["accuracy"] < 0.1
