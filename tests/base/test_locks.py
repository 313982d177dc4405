"""Locks: one process writes a folder, the second is told who does, and the dead hold nothing."""

import json
import multiprocessing
import os
import signal
import socket
import time

import pytest

from hf_transfer.base import locks
from hf_transfer.base.errors import UserError
from hf_transfer.base.locks import LOCK, only_writer


def _write(folder, ready):
    with only_writer(folder):
        ready.set()
        time.sleep(60)


@pytest.fixture
def other(tmp_path):
    """Another process that writes the folder."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=_write, args=(tmp_path, ready))
    child.start()
    assert ready.wait(30)
    yield child
    child.kill()
    child.join()


def test_the_second_process_is_told_who_writes_where_and_since_when(tmp_path, other):
    with pytest.raises(UserError) as caught, only_writer(tmp_path):
        pass
    said = str(caught.value)
    assert f"{tmp_path} is in use by another run (process {other.pid} on " in said
    assert f"on {socket.gethostname()}, since {time.strftime('%Y-')}" in said
    assert "\n" not in said


def test_what_a_killed_process_held_is_free(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    with only_writer(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def _write_with_a_child(folder, ready):
    with only_writer(folder):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        (folder / "child").write_text(str(child.pid))
        ready.set()
        time.sleep(60)


@pytest.mark.parametrize("waited_for", [True, False])
def test_children_that_outlive_a_killed_process_hold_nothing(tmp_path, waited_for):
    """As the workers of a DataLoader do for some seconds; also while nobody has waited for the
    killed process, as in a container whose first process never does."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    parent = context.Process(target=_write_with_a_child, args=(tmp_path, ready))
    parent.start()
    assert ready.wait(30)
    os.kill(parent.pid, signal.SIGKILL)
    os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT)
    if waited_for:
        parent.join()
    try:
        with only_writer(tmp_path):
            pass
    finally:
        parent.join()
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_one_process_cannot_write_a_folder_twice_at_once(tmp_path):
    with only_writer(tmp_path):
        with pytest.raises(UserError, match=f"process {os.getpid()}"), only_writer(tmp_path):
            pass
        with only_writer(tmp_path / "..", "search"):
            pass
    with only_writer(tmp_path):
        pass


@pytest.mark.parametrize("kept", [b"", b"{", b"[1]", b'{"pid": "x", "since": "y"}', b"[" * 9000])
def test_a_lock_file_that_nobody_holds_is_taken_whatever_is_in_it(tmp_path, kept):
    (tmp_path / LOCK).write_bytes(kept)
    with only_writer(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / LOCK).symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(UserError, match=r"\.lock: it is a link"), only_writer(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_without_locks_of_the_system_the_file_says_who_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_flock", lambda place, shared: None)
    with only_writer(tmp_path):
        with pytest.raises(UserError, match="remove .* if it has ended"), only_writer(tmp_path):
            pass
        text = (tmp_path / LOCK).read_text()
    (tmp_path / LOCK).write_text(text.replace(f'"pid": {os.getpid()}', '"pid": 4194303'))
    with only_writer(tmp_path):
        pass
