"""What is left out of a step comes back after it, and changes no result."""

import contextlib
import ctypes
import importlib.util
import inspect
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from small import HEAD, images, state, trained
from transformers import TrainerCallback

from hf_transfer.base import machine
from hf_transfer.base.machine import kept_memory
from hf_transfer.base.threads import SMALL_WORK, fitting_work
from hf_transfer.inputs import extraction
from hf_transfer.training.machine import cheap_steps
from hf_transfer.training.machine.cheap_steps import ASKED, EpochOrder, light_steps


def test_a_package_that_is_not_there_is_not_searched_for_inside_and_is_outside(monkeypatch):
    assert importlib.util.find_spec(ASKED) is None
    searched = []

    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            searched.append(name)

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with contextlib.suppress(KeyError), light_steps():
        searched.clear()
        assert importlib.util.find_spec(ASKED) is None
        assert searched == []
        raise KeyError
    assert importlib.util.find_spec(ASKED) is None
    assert searched == [ASKED]


def test_accelerate_asks_for_it_in_every_step(tmp_path, monkeypatch):
    """The reason for leaving it out; where this fails, ours can go."""
    asked = []
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: (asked.append(n), real(n, *a))[1]
    )
    trained(tmp_path, [{**HEAD, "epochs": 2}])
    assert asked.count(ASKED) >= 2 * 3


def test_a_package_that_is_there_stays(monkeypatch):
    module = type(sys)("lomo")
    monkeypatch.setitem(sys.modules, ASKED, module)
    with light_steps():
        assert sys.modules[ASKED] is module
    assert sys.modules[ASKED] is module


def pages(times=5, size=2**26):
    """Return how many pages the system had to give for a large block, made anew each time.

    Of bytes, not of a tensor: where an aligned block is taken from depends on what else lies there.
    """

    def count():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    b"x" * size  # the first is new in any case
    before = count()
    for _ in range(times):
        b"x" * size
    return count() - before


def resident():
    """Return the megabytes that are this process's own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def test_otherwise_the_memory_of_every_step_is_new():
    """The reason for keeping it; where this fails, ours can go. In a process of its own."""
    code = f"import resource\n{inspect.getsource(pages)}\nprint(pages())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(asked.stdout) > 5 * 10_000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not the GNU C library")
def test_memory_of_a_step_is_kept_for_the_next_and_given_back_after_the_last():
    before = resident()
    with kept_memory():
        assert pages() < 100
        assert resident() > before + 50
    assert resident() < before + 20


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not the GNU C library")
def test_memory_is_kept_until_the_outermost_block_ends():
    before = resident()
    with kept_memory():
        pages()
        with kept_memory():
            pass
        assert resident() > before + 50
        assert pages() < 100
    assert resident() < before + 20


@pytest.fixture
def asked(monkeypatch):
    """What glibc's allocator is asked for, in order; tests add what happens in between."""
    found = []

    class Library:
        def mallopt(self, name, size):
            found.append((name, size))

        def malloc_trim(self, left):
            found.append("trim")

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    return found


class Look(TrainerCallback):
    def __init__(self, asked):
        self.asked = asked

    def on_step_end(self, *_, **__):
        self.asked.append("step")

    def on_prediction_step(self, *_, **__):
        self.asked.append("batch")


KEPT = [(name, machine.KEPT) for name in machine.USUAL]
GIVEN_BACK = [*machine.USUAL.items(), "trim"]


def test_training_keeps_its_memory_and_gives_it_back(tmp_path, asked):
    trained(tmp_path, [{**HEAD, "epochs": 1}], callbacks=[Look(asked)])
    begun, while_it_trains, ended = asked[:2], asked[2:-3], asked[-3:]
    assert (begun, ended) == (KEPT, GIVEN_BACK)
    assert set(while_it_trains) == {"step", "batch"}


def test_so_does_an_evaluation_that_is_asked_for_afterwards(tmp_path, asked):
    trainer = trained(tmp_path, [{**HEAD, "epochs": 1}])
    trainer.add_callback(Look(asked))
    asked.clear()
    trainer.predict(trainer.train_dataset)
    batches = asked.count("batch")
    assert batches > 1
    assert asked == [*KEPT, *["batch"] * batches, *GIVEN_BACK]


def test_another_c_library_is_left_alone(monkeypatch):
    asked = []

    class Library:  # musl's: no such function, and none may be called
        def __getattr__(self, name):
            asked.append(name)
            raise AttributeError(name)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    with kept_memory():
        assert machine.glibc() is None
    assert set(asked) == {"malloc_trim"}


@pytest.fixture
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize(
    ("work", "threads"), [(0, 2), (1, 1), (SMALL_WORK / 2, 1), (SMALL_WORK, 2)]
)
def test_little_work_is_done_by_one_thread_and_the_others_come_back(work, threads):
    with contextlib.suppress(KeyError), fitting_work(work):
        assert torch.get_num_threads() == threads
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("_two_threads")
def test_a_head_phase_takes_one_thread_and_a_live_one_all(tmp_path, monkeypatch):
    seen = {}
    real = cheap_steps.torch.optim.AdamW.step

    for kind in ("cached", "live"):

        def step(self, *args, kind=kind, **kwargs):
            seen.setdefault(kind, torch.get_num_threads())
            return real(self, *args, **kwargs)

        monkeypatch.setattr(torch.optim.AdamW, "step", step)
        phases, few = [{**HEAD, "epochs": 1, "features": kind}], images(6)
        trained(tmp_path, phases, train_dataset=few, eval_dataset=few)
    assert seen == {"cached": 1, "live": 2}


def test_features_are_the_same_however_many_go_through_at_once(tmp_path, monkeypatch):
    ends = []
    for most in (64, 5):
        monkeypatch.setattr(extraction, "BATCH", most)
        monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / str(most)))
        done = trained(tmp_path, [{**HEAD, "features": "cached"}], train_dataset=images(13))
        ends.append(state(done.model))
    for name, value in ends[0].items():
        assert torch.allclose(value.float(), ends[1][name].float(), atol=1e-5), name


class Kept(TrainerCallback):
    def on_epoch_end(self, *args, train_dataloader, **kwargs):
        self.sampler = train_dataloader.batch_sampler.sampler


@pytest.mark.parametrize("seed", [None, 5])
def test_the_order_of_an_epoch_is_accelerates(tmp_path, seed):
    kept = Kept()
    trained(tmp_path, [HEAD], callbacks=[kept], data_seed=seed)
    ours = kept.sampler
    assert isinstance(ours, EpochOrder)
    assert seed in (None, ours.initial_seed)
    theirs = SeedableRandomSampler(range(10_000), data_seed=ours.initial_seed)
    ours = EpochOrder(range(10_000), data_seed=ours.initial_seed)
    for epoch in (0, 1, 7):
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        assert list(ours) == list(theirs)
    assert ours.epoch == theirs.epoch == 8


def test_an_order_is_not_held_as_numbers_of_python():
    count = 200_000
    tracemalloc.start()
    try:
        first = iter(EpochOrder(range(count), data_seed=0))
        next(first)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * count  # of torch's memory, 8 bytes each, nothing is seen here
