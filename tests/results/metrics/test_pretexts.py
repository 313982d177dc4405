"""How well a pretext is solved."""

import numpy as np

from hf_transfer.results.metrics.pretexts import (
    AMONG,
    found_metrics,
    nearer_metrics,
    told_metrics,
)


def test_what_is_told_is_the_share_of_right_answers():
    outputs = np.eye(4)[[0, 1, 2, 3]]
    assert told_metrics(outputs, [0, 1, 2, 0]) == {"n": 4, "accuracy": 0.75}


def test_a_picture_is_found_where_the_other_one_is_the_nearest_of_a_batch():
    one = np.random.default_rng(0).normal(size=(AMONG + 5, 16))
    assert found_metrics(np.concatenate([one, one * 3], 1), one)["accuracy"] == 1.0
    others = np.roll(one, 1, axis=0)
    assert found_metrics(np.concatenate([one, others], 1), one)["accuracy"] < 0.1


def test_a_frame_is_to_be_nearer_to_the_next_one_than_to_one_far_away():
    """The frame before a film's last one is among the next ones itself, and is no mistake."""
    films = np.random.default_rng(0).normal(size=(6, 1, 16))
    frames = (films + 0.1 * np.random.default_rng(1).normal(size=(6, 4, 16))).reshape(24, 16)
    after = frames.reshape(6, 4, 16)[:, [1, 2, 3, 2]].reshape(24, 16)
    assert nearer_metrics(np.concatenate([frames, after], 1), frames)["accuracy"] == 1.0
    others = np.random.default_rng(2).normal(size=(24, 32))
    assert 0.2 < nearer_metrics(others, frames)["accuracy"] < 0.8
