"""The scale: standard numbers have mean 0 and spread 1, and come back in their units."""

import numpy as np
import pytest

from hf_transfer.base.errors import DataError
from hf_transfer.data.scale import Scale


def test_standard_numbers_have_mean_zero_and_spread_one_and_come_back():
    values = np.random.default_rng(0).normal([5000, -0.01], [300, 1e-4], (200, 2))
    scale = Scale.of(values, ("x", "y"))
    standard = scale.to_standard(values)
    assert standard.dtype == np.float32
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standard.std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(scale.to_units(standard), values, rtol=1e-6)


def test_a_target_that_does_not_vary_is_refused_by_name():
    with pytest.raises(DataError, match=r"target 'y' is 0.1 in every training image"):
        Scale.of(np.array([[1.0, 0.1], [2.0, 0.1], [4.0, 0.1]]), ("x", "y"))


def test_a_target_that_float32_cannot_tell_apart_is_refused():
    seconds = 1.7e9 + np.arange(100.0)[:, None]
    with pytest.raises(DataError, match="subtract a constant"):
        Scale.of(seconds, ("taken_at",))
    Scale.of(seconds - 1.7e9, ("taken_at",))
