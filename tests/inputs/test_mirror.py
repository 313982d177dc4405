"""An image and its mirror image: the pixels of both, and the mean of what is said of them."""

import numpy as np
import pytest
import torch

from hf_transfer.data.image_set import ImageSet
from hf_transfer.inputs.mirror import mean_of_views, mirrored


def test_only_left_and_right_change_places():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    found = mirrored(ImageSet.from_arrays(pixels, [0, 1, 0]))
    assert np.array_equal(found.pixels[[1, 2]], pixels[1:, :, ::-1])
    assert np.array_equal(found[0]["pixels"].numpy(), pixels[0, :, ::-1])
    assert np.array_equal(found.subset([2]).pixels[[0]], pixels[2:, :, ::-1])
    assert found.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("task", "shares"),
    [
        ("classification", lambda x: x.softmax(-1)),
        ("multi_label", torch.sigmoid),
        ("regression", lambda x: x),
    ],
)
def test_probabilities_are_averaged_and_numbers_as_they_are(task, shares):
    one, two = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    mean = shares(mean_of_views(task, [one, two]))
    assert torch.allclose(mean, (shares(one) + shares(two)) / 2)
