"""Shares of a step: every image counts once, in batches and processes of any number."""

import numpy as np
import pytest
import torch
from small import HEAD, NAMES, state, trained
from tiny_folders import resnet_folder

from hf_transfer.backbones.load import load_backbone
from hf_transfer.training.machine.image_weights import SHARE, counted, own_rows, shared


@pytest.mark.parametrize("images", range(1, 30))
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_rows_of_all_processes_are_the_images_of_the_last_batches(images, count):
    rows = [own_rows(images, 3, rank, count) for rank in range(count)]
    assert {everyone for _, everyone in rows} == {sum(own for own, _ in rows)}
    assert (images - rows[0][1]) % (3 * count) == 0
    assert 0 < rows[0][1] <= 3 * count
    assert [own for own, _ in rows] == sorted((own for own, _ in rows), reverse=True)


def test_means_times_their_weights_average_to_the_mean_over_all_images():
    """Two batches of 3 in each of two processes; the last four of 10 images are 3 and 1."""
    images = torch.arange(10.0)
    parts = [[images[0:3], images[6:9]], [images[3:6], torch.cat([images[9:], images[:2]])]]
    means = []
    for rank, own in enumerate(parts):
        batches = shared([{"x": part} for part in own], 10, 3, True, rank, 2)
        means += [batch["x"].mean() * batch.get(SHARE, 1.0) for batch in batches]
    assert torch.stack(means).mean() == pytest.approx(images.mean().item())


def test_full_batches_are_left_as_they_are():
    batches = [{"x": torch.zeros(3)}, {"x": torch.ones(3)}]
    for found, given in zip(shared(batches, 12, 3, True, 1, 2), batches, strict=True):
        assert found is given


def test_a_batch_of_no_image_of_its_own_runs_and_counts_nothing():
    batch = {"x": torch.ones(3), "labels": torch.tensor([1, 2, 0]), "names": ["a", "b", "c"]}
    (found,) = shared([batch], 8, 3, True, 1, 2)
    assert found[SHARE] == 0
    assert len(found["x"]) == 3
    assert [one["labels"].tolist() for one in counted([found])] == [[-100, -100, -100]]
    assert found["labels"].tolist() == [1, 2, 0]
    boxes = {**found, "labels": [{}, {}, {}]}  # of detection, which are not counted
    assert next(counted([boxes])) is boxes


def test_what_is_given_for_each_image_is_cut_alike():
    batch = {"x": torch.ones(3, 2), "rows": np.arange(3), "labels": [{}, {}, {}], "size": 32}
    (found,) = shared([batch], 10, 3, True, 1, 2)
    assert [len(found[key]) for key in ("x", "rows", "labels")] == [1, 1, 1]
    assert found["size"] == 32


def test_accumulated_batches_are_one_whether_or_not_a_model_tells_its_loss_how_many_there_are(
    tmp_path,
):
    """transformers' ResNet takes their number, and its loss knows nothing of it."""
    folder = resnet_folder(tmp_path / "resnet")
    ends = []
    for accumulate in (1, 2):
        model = load_backbone(f"transformers/{folder}", NAMES, image_size=32)
        phase = {**HEAD, "optimizer": "sgd", "batch_size": 8 // accumulate}
        made = trained(tmp_path / str(accumulate), [{**phase, "accumulate": accumulate}], model)
        ends.append(state(made.model))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-6)
