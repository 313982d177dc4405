"""Rows on disk: rebuilt when torn, stale or foreign; whole with several writers; limited."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from hf_transfer.base import shards
from hf_transfer.base.cache import StoreError, cache_entries, remove
from hf_transfer.base.shards import Column
from hf_transfer.base.store import build_rows, open_rows, reserve

COLUMNS = (Column((3, 2), "float32"), Column((), "int16"))
ROWS = 23


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Four rows in a shard."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 4 * sum(c.row_bytes for c in COLUMNS))


class Compute:
    """Values that follow from the row; counts the spans that it was asked for."""

    def __init__(self, factor=1.0, fail_at=None, pause=0.0):
        self.spans, self.factor, self.fail_at, self.pause = [], factor, fail_at, pause

    def __call__(self, spans, write):
        for span in spans:
            if len(self.spans) == self.fail_at:
                raise KeyboardInterrupt
            self.spans.append(span)
            time.sleep(self.pause)
            rows = np.arange(span.start, span.stop)
            wide = self.factor * np.broadcast_to(rows[:, None, None], (len(rows), 3, 2))
            for some in (slice(0, 3), slice(3, None)):
                if len(rows[some]):
                    write((wide[some].astype(np.float32), rows[some].astype(np.int16)))


def opened(root, compute=None, key="k", **options):
    return open_rows(key, COLUMNS, ROWS, compute or Compute(), root=root, **options)


def assert_right(features):
    rows = np.array([22, 0, 5, 5, 13])
    wide, short = features[rows]
    assert len(features) == ROWS
    assert np.array_equal(wide[:, 2, 1], rows.astype(np.float32))
    assert np.array_equal(short, rows)


def test_rows_come_back_as_they_were_computed_and_are_computed_once(tmp_path):
    compute = Compute()
    assert_right(opened(tmp_path, compute))
    assert [span.start for span in compute.spans] == [0, 4, 8, 12, 16, 20]
    again = Compute()
    assert_right(opened(tmp_path, again))
    assert again.spans == []


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-3])


def emptied(path):
    path.write_bytes(b"")


def one_bit(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def foreign(path):
    np.save(path, np.zeros((2, 2), np.float64))


def pickled(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def removed(path):
    path.unlink()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage", [cut_short, emptied, one_bit, foreign, pickled, removed])
@pytest.mark.parametrize("column", [0, 1])
def test_a_damaged_shard_is_built_again_and_no_other(tmp_path, damage, column, caplog):
    opened(tmp_path)
    (path,) = (tmp_path / "k").glob(f"{column}-0000000008-*.npy")
    damage(path)
    compute = Compute()
    assert_right(opened(tmp_path, compute))
    assert [span.start for span in compute.spans] == [8]
    assert ("is built again" in caplog.text) == (damage is not removed)


def test_a_file_of_other_values_with_a_right_name_is_not_used(tmp_path):
    """Another entry's shard, copied over: its checksum is in its name, and does not fit."""
    opened(tmp_path)
    opened(tmp_path, Compute(7.0), key="other")
    (path,) = (tmp_path / "k").glob("0-0000000004-*.npy")
    (wrong,) = (tmp_path / "other").glob("0-0000000004-*.npy")
    path.write_bytes(wrong.read_bytes())
    assert_right(opened(tmp_path))


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path, Compute(fail_at=3))
    compute = Compute()
    assert_right(opened(tmp_path, compute))
    assert [span.start for span in compute.spans] == [12, 16, 20]


def _build_slowly(root):
    shards.SHARD_BYTES = 4 * sum(c.row_bytes for c in COLUMNS)
    opened(root, Compute(pause=0.05))


def test_a_killed_build_leaves_what_the_next_goes_on_from(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=_build_slowly, args=(tmp_path,))
    child.start()
    deadline = time.time() + 30
    while len(list(tmp_path.glob("k/0-*.npy"))) < 2 and time.time() < deadline:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    compute = Compute()
    assert_right(opened(tmp_path, compute))
    assert 0 < len(compute.spans) < 6


def test_two_processes_that_build_the_same_entry_do_not_disturb_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_build_slowly, args=(tmp_path,)) for _ in range(3)]
    for child in children:
        child.start()
    assert_right(opened(tmp_path, Compute(pause=0.03)))
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0, 0]
    again = Compute()
    assert_right(opened(tmp_path, again))
    assert again.spans == []
    assert not list(tmp_path.glob("*/.*.part"))


def test_processes_that_share_an_entry_each_build_their_part(tmp_path):
    first, second = Compute(), Compute()
    build_rows("k", COLUMNS, ROWS, first, root=tmp_path, share=(0, 2))
    build_rows("k", COLUMNS, ROWS, second, root=tmp_path, share=(1, 2))
    assert [span.start for span in first.spans] == [0, 8, 16]
    assert [span.start for span in second.spans] == [4, 12, 20]
    rest = Compute()
    assert_right(opened(tmp_path, rest))
    assert rest.spans == []


def test_what_a_killed_build_left_goes_with_the_next_build_but_not_what_is_being_written(tmp_path):
    held = opened(tmp_path)
    opened(tmp_path, key="other")
    for key in ("k", "other"):
        (tmp_path / key / ".0123456789abcdef.part").touch()
    opened(tmp_path, key="another")
    assert [path.parent.name for path in tmp_path.glob("*/.*.part")] == ["k"]
    del held
    opened(tmp_path, key="one more")
    assert not list(tmp_path.glob("*/.*.part"))


def test_a_shard_is_a_64th_of_an_entry_and_no_fewer_than_some_hundred_rows(monkeypatch):
    """What an interruption costs, and what processes share; the same whoever computes it."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 64 * 2**20)
    lengths = {n: [len(s) for s in shards.spans_of(COLUMNS, n)] for n in (0, 100, 3446, 10**6)}
    assert lengths[0] == []
    assert lengths[100] == [100]
    assert lengths[3446] == [128] * 26 + [118]
    assert lengths[10**6] == [15625] * 64
    wide = [Column((1000, 1000), "float32")]
    assert {len(span) for span in shards.spans_of(wide, 160)} == {16}  # 64 MiB


def test_few_rows_and_many_are_read_alike_from_many_shards(tmp_path):
    features = opened(tmp_path)
    rows = np.random.default_rng(0).integers(0, ROWS, 500)
    for some in (rows, rows[:5], rows[:0]):
        wide, short = features[some]
        assert np.array_equal(wide[:, 0, 0], some.astype(np.float32))
        assert np.array_equal(short, some)


def test_room_is_made_for_all_entries_of_a_phase_together_or_for_none(tmp_path):
    """Two of three views that fit are of no use; and none is removed to make room for another."""
    opened(tmp_path, key="idle"), opened(tmp_path, key="view 1")
    size = max(entry.size_bytes for entry in cache_entries(tmp_path))
    old(tmp_path, "view 1", 300), old(tmp_path, "idle", 100)
    views = dict.fromkeys(["view 1", "view 2", "view 3"], ROWS)
    with pytest.raises(StoreError, match="HF_TRANSFER_CACHE_GB"):
        reserve(views, COLUMNS, root=tmp_path, limit_bytes=size + 2 * BYTES - 1)
    assert {entry.key for entry in cache_entries(tmp_path)} == {"idle", "view 1"}
    held = reserve(views, COLUMNS, root=tmp_path, limit_bytes=size + 2 * BYTES)
    assert {entry.key for entry in cache_entries(tmp_path)} == set(views)
    assert all(entry.in_use for entry in cache_entries(tmp_path))
    assert len(held) == 3


def test_others_may_read_what_is_kept_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        opened(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "k").iterdir()} == {0o644}
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o755


BYTES = ROWS * sum(column.row_bytes for column in COLUMNS)


def old(root, key, seconds):
    os.utime(root / key, (time.time() - seconds,) * 2)


def test_the_entry_not_used_for_longest_makes_room(tmp_path):
    for key in ("first", "second", "third"):
        opened(tmp_path, key=key)
    size = max(entry.size_bytes for entry in cache_entries(tmp_path))
    old(tmp_path, "first", 100), old(tmp_path, "second", 300), old(tmp_path, "third", 200)
    opened(tmp_path, key="second")  # used now
    opened(tmp_path, key="fourth", limit_bytes=3 * size + BYTES // 2)
    assert {entry.key for entry in cache_entries(tmp_path)} == {"first", "second", "fourth"}


def test_an_entry_in_use_is_not_evicted(tmp_path):
    """Some run is reading it: its rows must stay whatever the limit; the other goes."""
    held = opened(tmp_path, key="held")
    opened(tmp_path, key="idle")
    size = max(entry.size_bytes for entry in cache_entries(tmp_path))
    old(tmp_path, "held", 300), old(tmp_path, "idle", 100)
    opened(tmp_path, key="new", limit_bytes=2 * size + BYTES // 2)
    assert {entry.key for entry in cache_entries(tmp_path)} == {"held", "new"}
    assert_right(held)
    del held
    opened(tmp_path, key="newer", limit_bytes=2 * size + BYTES // 2)
    assert {entry.key for entry in cache_entries(tmp_path)} == {"new", "newer"}


def _hold(root, ready, done):
    shards.SHARD_BYTES = 4 * sum(c.row_bytes for c in COLUMNS)
    held = opened(root, key="held")
    ready.set()
    done.wait(30)
    assert_right(held)


def test_an_entry_in_use_by_another_process_is_neither_evicted_nor_cleared(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    child = context.Process(target=_hold, args=(tmp_path, ready, done))
    child.start()
    assert ready.wait(30)
    old(tmp_path, "held", 300)
    with pytest.raises(StoreError, match="in use"):
        opened(tmp_path, key="new", limit_bytes=BYTES + BYTES // 2)
    assert sum(map(remove, cache_entries(tmp_path))) == 0
    done.set()
    child.join(30)
    assert child.exitcode == 0
    assert sum(map(remove, cache_entries(tmp_path))) > 0
    assert cache_entries(tmp_path) == []


def test_features_larger_than_the_limit_are_refused_with_the_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TRANSFER_CACHE_GB", "0.0000001")
    with pytest.raises(StoreError, match="HF_TRANSFER_CACHE_GB"):
        opened(tmp_path)
    monkeypatch.setenv("HF_TRANSFER_CACHE_GB", "much")
    with pytest.raises(StoreError, match="write a number of gigabytes"):
        opened(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        opened(tmp_path / "file" / "below")


def test_entries_are_listed_and_removed_one_by_one(tmp_path):
    opened(tmp_path, key="one", about="flowers")
    opened(tmp_path, key="two")
    old(tmp_path, "two", 100)
    assert [(e.key, e.about) for e in cache_entries(tmp_path)] == [("one", "flowers"), ("two", "")]
    assert all(entry.size_bytes >= BYTES for entry in cache_entries(tmp_path))
    assert remove(cache_entries(tmp_path)[0]) >= BYTES
    assert [entry.key for entry in cache_entries(tmp_path)] == ["two"]
    assert cache_entries(tmp_path / "nowhere") == []


def _read_with_few_files(root):
    resource = pytest.importorskip("resource")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 8, hard))
    shards.SHARD_BYTES = 1  # a row in each
    assert_right(opened(root))


def test_an_entry_of_many_files_is_read_where_few_may_be_open(tmp_path):
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_read_with_few_files, args=(tmp_path,))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def _read_without_writing(root):
    resource = pytest.importorskip("resource")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    shards.SHARD_BYTES = 4 * sum(c.row_bytes for c in COLUMNS)
    held = reserve({"k": ROWS}, COLUMNS, root=root)
    (root / "reserved").mkdir()
    while not (root / "built").exists():
        time.sleep(0.01)
    assert_right(opened(root))
    assert held


def test_a_process_that_can_write_nothing_uses_what_another_builds(tmp_path):
    child = multiprocessing.get_context("fork").Process(
        target=_read_without_writing, args=(tmp_path,)
    )
    child.start()
    deadline = time.time() + 30
    while not (tmp_path / "reserved").exists() and time.time() < deadline:
        time.sleep(0.01)
    opened(tmp_path)
    (tmp_path / "built").mkdir()
    child.join(30)
    assert child.exitcode == 0
