"""Scratch: the same numbers in memory and on disk, nothing left there, and a full disk said."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_transfer.data import arrays
from hf_transfer.data.arrays import Grown, arange, grouped, take, where, zeros

resource = pytest.importorskip("resource", reason="no limits on the size of a file")


@pytest.fixture(params=[0, 100, 2**20], ids=["on disk", "both", "in memory"])
def _large(request, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path))
    monkeypatch.setattr(arrays, "LARGE_BYTES", request.param)
    monkeypatch.setattr(arrays, "AT_ONCE", 7)


@pytest.mark.usefixtures("_large")
def test_rows_are_numpys_wherever_they_lie():
    draw = np.random.default_rng(0)
    values, rows = draw.integers(0, 9, (40, 3)), draw.permutation(40)[:23]
    assert np.array_equal(arange(40), np.arange(40))
    assert np.array_equal(take(values, rows), values[rows])
    assert np.array_equal(where(values[:, 0] > 4), np.flatnonzero(values[:, 0] > 4))
    assert zeros((0, 3), np.int64).shape == (0, 3)
    assert not zeros((30, 3), np.float32).any()
    codes = values[:, 1]
    rows.sort()
    groups = [rows[codes[rows] == code].tolist() for code in np.unique(codes[rows])]
    assert [mine.tolist() for mine in grouped(codes, rows)] == groups
    assert list(grouped(codes, rows[:0])) == []


@pytest.mark.usefixtures("_large")
def test_what_grows_can_be_read_added_to_and_pickled():
    grown, numbers = Grown("Q"), []
    for number in range(50):
        grown.append(number)
        numbers.append(number)
        if number % 20 == 3:
            assert grown.view.tolist() == numbers
    grown.extend(np.arange(9, dtype=np.uint64).tobytes())
    assert grown.view.tolist() == [*numbers, *range(9)]
    assert len(grown) == 59
    assert pickle.loads(pickle.dumps(grown)).view.tolist() == grown.view.tolist()
    assert Grown("B").view.tolist() == []


def test_what_is_large_is_no_memory_of_the_process_and_leaves_no_file(tmp_path, monkeypatch):
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc to read resident memory from")
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "cache"))

    def own():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

    before = own()
    numbers = arange(8 * 2**20)  # 64 MiB
    assert own() < before + 16
    assert numbers[-1] == len(numbers) - 1
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path):
    """A limit on the size of files stands for the disk."""
    code = (
        "import resource, signal; from hf_transfer.data import arrays as scratch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        "for make in (lambda: scratch.zeros(2**20, 'int64'),\n"
        "             lambda: scratch.Grown('B', bytes(2**22))):\n"
        "    try:\n"
        "        make()\n"
        "    except scratch.ScratchError as error:\n"
        "        print(error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "HF_TRANSFER_CACHE": str(tmp_path)},
    )  # fmt: skip
    first, second = told.stdout.splitlines()
    assert first.startswith(
        f"{tmp_path}: File too large; lists of all images are kept there (8.4 MB"
    )
    assert "(4.2 MB more): make room, or name another place in HF_TRANSFER_CACHE" in second
