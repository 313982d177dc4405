"""Weights of a step's images: every image counts once, in batches and processes of any number."""

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from accelerate.state import GradientState
from small import HEAD, NAMES, arguments, images, network, state, trained
from tiny_folders import resnet_folder
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hf_transfer.backbones.load import load_backbone
from hf_transfer.base.processes import Processes
from hf_transfer.inputs.model_input import collate
from hf_transfer.training.machine import image_weights
from hf_transfer.training.machine.image_weights import SHARE, count_rows, counted, weighted
from hf_transfer.training.trainer import TransferTrainer


def loaders(rows, batch_size, count, skipped=0):
    """Return each process's loader of some rows, prepared by accelerate, with rows counted."""
    found = []
    for rank in range(count):
        plain = DataLoader(Rows(), batch_size=batch_size, sampler=rows, collate_fn=torch.tensor)
        loader = prepare_data_loader(plain, num_processes=count, process_index=rank)
        count_rows(loader)
        found.append(skip_first_batches(loader, skipped) if skipped else loader)
    return found


class Rows(Dataset):
    """Any row there is, and a length that has nothing to do with them."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return index


def steps(loader, accumulate, rank, count):
    """Return the steps of an epoch as they are trained on."""
    batches = ({"x": batch.double()} for batch in loader)
    progress, here = GradientState(), Processes(count, rank)
    return list(iter(lambda: image_weights.next_step(batches, accumulate, progress, here), []))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("skipped", [0, 1])
def test_each_row_that_a_sampler_draws_counts_once_and_alike(count, accumulate, skipped):
    """Whatever the length of the data set, and also after an interruption."""
    for number in range(1, 26):
        drawn = list(range(100, 100 + number))
        every = [
            steps(loader, accumulate, rank, count)
            for rank, loader in enumerate(loaders(drawn, 3, count, skipped))
        ]
        left = drawn[3 * count * skipped :]
        assert len({len(one) for one in every}) == 1
        for place, of_all in enumerate(zip(*every, strict=True)):
            means = [batch["x"].mean() * batch.get(SHARE, 1.0) for own in of_all for batch in own]
            size = 3 * count * accumulate
            expected = np.mean(left[place * size : (place + 1) * size])
            assert torch.stack(means).mean().item() == pytest.approx(expected), (number, place)


def test_full_batches_are_left_as_they_are():
    batches = [{"x": torch.zeros(3)}, {"x": torch.ones(3)}]
    for found, given in zip(weighted(batches, [3, 3], [6, 6], 2), batches, strict=True):
        assert found is given


def test_batches_of_several_sizes_weigh_what_they_hold():
    batches = [{"x": torch.zeros(3)}, {"x": torch.ones(1)}]
    assert [one[SHARE] for one in weighted(batches, [3, 1], [3, 1])] == [1.5, 0.5]


def test_a_batch_of_no_image_of_its_own_runs_and_counts_nothing():
    batch = {"x": torch.ones(3), "labels": torch.tensor([1, 2, 0]), "names": ["a", "b", "c"]}
    (found,) = weighted([batch], [0], [2], 2)
    assert found[SHARE] == 0
    assert len(found["x"]) == 3
    assert [one["labels"].tolist() for one in counted([found])] == [[-100, -100, -100]]
    assert found["labels"].tolist() == [1, 2, 0]
    boxes = {**found, "labels": [{}, {}, {}]}  # of detection, which are not counted
    assert next(counted([boxes])) is boxes


class Sampled(TransferTrainer):
    """A user's trainer: 30 rows of 24 images in an epoch."""

    def _get_train_sampler(self, train_dataset=None):
        return [*range(24), *range(6)]


class Streamed(IterableDataset):
    """30 images, and a length that is none of theirs."""

    def __init__(self, stored):
        self.stored = stored

    def __len__(self):
        return 26

    def __iter__(self):
        yield from (self.stored[index] for index in [*range(24), *range(6)])


@pytest.mark.parametrize("kind", ["sampler", "stream"])
def test_no_image_of_the_last_batch_is_lost_where_lengths_differ(tmp_path, monkeypatch, kind):
    stored, seen = images(24), []
    real = image_weights.next_step

    def noting(*args):
        found = real(*args)
        seen.extend(batch["index"].tolist() for batch in found)
        return found

    monkeypatch.setattr(image_weights, "next_step", noting)
    kinds = {"sampler": (Sampled, stored), "stream": (TransferTrainer, Streamed(stored))}
    trainer, train = kinds[kind]
    phase = {**HEAD, "features": "live", "epochs": None, "steps": 4, "best": "last"}
    trainer(
        network(), arguments(tmp_path), phases=[phase], train_dataset=train, data_collator=collate
    ).train()
    assert sum(map(len, seen)) == 30
    assert [len(batch) for batch in seen] == [8, 8, 8, 6]


def test_what_is_given_for_each_image_is_cut_alike():
    batch = {"x": torch.ones(3, 2), "rows": np.arange(3), "labels": [{}, {}, {}], "size": 32}
    (found,) = weighted([batch], [1], [4], 2)
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
