"""Threads: as many as there are cores free, and one for small work."""

import contextlib
import os
import sys
import types

import pytest

from hf_transfer.base import threads

TICK = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of four cores, whose times and limits are written by the test."""
    monkeypatch.setattr(threads, "PROC", tmp_path / "proc")
    monkeypatch.setattr(threads, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(threads, "_places", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(threads, "_first", None)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "cgroup").mkdir()
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: None)
    return tmp_path


def passed(machine, monkeypatch, busy, own=0.0, seconds=10.0):
    """Let seconds pass in which each core was busy for a share, and this process for some."""
    looks = []
    for moment in (0.0, seconds):
        rows = [
            f"cpu{core} {int(share * moment * TICK)} 0 0 {int((1 - share) * moment * TICK)} 0 0 0 0"
            for core, share in enumerate([*busy, 1.0, 1.0])  # and two that are not ours
        ]
        (machine / "proc" / "stat").write_text("cpu 0\n" + "\n".join(rows) + "\nintr 1\n")
        monkeypatch.setattr(threads.os, "times", lambda m=moment: (own * m, 0, 0, 0, m))
        looks.append(threads._look())
    monkeypatch.setattr(threads, "_look", iter(looks).__next__)


@pytest.mark.parametrize(
    ("busy", "own", "free"),
    [
        ([0, 0, 0, 0], 0, 4),
        ([1, 0, 0, 0], 0, 3),
        ([1, 0, 0, 0], 1, 4),  # it is this process that computes
        ([1, 1, 0.1, 0.2], 1, 3),
        ([1, 1, 1, 1], 0.5, 1),  # all are taken
        ([0.2, 0.1, 0, 0.1], 0, 4),  # a little is always going on
    ],
)
def test_cores_that_others_compute_on_are_not_free(machine, monkeypatch, busy, own, free):
    passed(machine, monkeypatch, busy, own)
    assert threads.free_cores() == free


def test_what_was_looked_at_first_counts_from_then_on_and_is_not_waited_for(machine, monkeypatch):
    passed(machine, monkeypatch, [1, 1, 0, 0])
    monkeypatch.setattr(threads.time, "sleep", pytest.fail)
    times = iter([0.0, 5.0])
    real = threads._look
    monkeypatch.setattr(
        threads, "_look", lambda: types.SimpleNamespace(**{**vars(real()), "when": next(times)})
    )
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    threads.prepare()
    assert threads.free_cores() == 2


def test_without_times_the_load_is_what_others_compute(machine, monkeypatch):
    monkeypatch.setattr(threads.os, "getloadavg", lambda: (2.9, 0, 0))
    assert threads.free_cores() == 1
    monkeypatch.delattr(threads.os, "getloadavg")
    assert threads.free_cores() == 4


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 4),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2),
        ("4:memory:/m\n3:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "50000",
                                          "cpu/a/cpu.cfs_period_us": "100000"}, 0.5),
        ("3:cpu:/a", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("3:cpu:/gone", {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ("", {}, 4),
        ("odd", {"cpu.max": "odd"}, 4),
    ],
)  # fmt: skip
def test_limits_of_control_groups_of_both_versions_hold(machine, monkeypatch, group, files, cores):
    (machine / "proc" / "self" / "cgroup").write_text(group)
    for name, text in files.items():
        path = machine / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert threads.allowed_cores() == cores
    passed(machine, monkeypatch, [0, 0, 0, 0])
    assert threads.free_cores() == max(1, int(cores + 0.5))


class Torch:
    def __init__(self, count):
        self.count = count

    def get_num_threads(self):
        return self.count

    def set_num_threads(self, count):
        self.count = count


def test_threads_fit_until_the_block_ends_and_are_measured_once(monkeypatch):
    fake = Torch(8)
    monkeypatch.setitem(sys.modules, "torch", fake)
    for name in threads.ASKED:
        monkeypatch.delenv(name, raising=False)
    free = iter([3])
    monkeypatch.setattr(threads, "free_cores", lambda: next(free))
    with contextlib.suppress(KeyError), threads.fitting():
        assert fake.count == 3
        with threads.fitting(), threads.fitting_work(1.0):
            assert fake.count == 1
        assert fake.count == 3
        raise KeyError
    assert fake.count == 8


def test_a_number_that_is_given_is_taken_however_busy_the_cores_are(monkeypatch):
    calls = []
    torch = types.SimpleNamespace(get_num_threads=lambda: 1, set_num_threads=calls.append)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(threads, "free_cores", lambda: 1)
    for name in threads.ASKED:
        monkeypatch.delenv(name, raising=False)
    with threads.fitting(3):
        assert calls == [3]
    assert calls == [3, 1]


@pytest.mark.parametrize("name", threads.ASKED)
def test_threads_that_were_asked_for_are_left(monkeypatch, name):
    fake = Torch(8)
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setenv(name, "8")
    monkeypatch.setattr(threads, "free_cores", lambda: 1)
    with threads.fitting():
        assert fake.count == 8


@pytest.mark.parametrize("own", [{}, {"GOMP_SPINCOUNT": "5"}, {"OMP_WAIT_POLICY": "passive"}])
def test_waiting_threads_soon_sleep_unless_a_user_says_how_they_wait(monkeypatch, own):
    for name in (*threads.WAITING, "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    threads.prepare()
    found = {name: os.environ.get(name) for name in threads.WAITING}
    asked = dict.fromkeys(threads.WAITING) if "OMP_WAIT_POLICY" in own else threads.WAITING
    assert found == {**asked, **{k: v for k, v in own.items() if k in found}}
    for name in threads.WAITING:
        monkeypatch.setenv(name, "")  # so that it is taken away again
