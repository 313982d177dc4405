"""Files and folders: there whole or not at all, never in place of another's, read within limits."""

import errno
import multiprocessing
import os
import signal
import time
import tracemalloc
from pathlib import Path

import pytest

from hf_transfer.base import files
from hf_transfer.base.files import (
    MARK,
    WriteError,
    add_text,
    kind_of,
    mark,
    owned,
    read_limited,
    remove_owned,
    write_text,
    written_folder,
)
from hf_transfer.data import reading


def fill(place: Path, **texts: str) -> None:
    with written_folder(place, "model") as aside:
        for name, text in texts.items():
            (aside / name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MARK
    }


def test_a_folder_is_there_whole_and_says_what_it_is(tmp_path):
    fill(tmp_path / "deep" / "model", config="a", weights="b")
    folder = tmp_path / "deep" / "model"
    assert texts(folder) == {"config": "a", "weights": "b"}
    assert kind_of(folder) == "model"
    assert owned(folder) == {"config", "weights"}
    assert os.listdir(tmp_path / "deep") == ["model"]


@pytest.mark.parametrize("swaps", [True, False])
def test_what_we_wrote_before_is_replaced(tmp_path, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    fill(tmp_path / "model", config="a", old="b")
    fill(tmp_path / "model", config="c", new="d")
    assert texts(tmp_path / "model") == {"config": "c", "new": "d"}
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_is_never_without_a_name_while_it_is_replaced(tmp_path):
    fill(tmp_path / "model", config="0")
    stop = multiprocessing.get_context("fork").Event()

    def replace_often() -> None:
        while not stop.is_set():
            fill(tmp_path / "model", config="1")

    child = multiprocessing.get_context("fork").Process(target=replace_often)
    child.start()
    deadline = time.monotonic() + 0.7
    try:
        while time.monotonic() < deadline:
            assert (tmp_path / "model").is_dir()
    finally:
        stop.set()
        child.join()


def foreign(folder: Path) -> dict[str, str]:
    """Files, a folder, an empty folder and a link of others in a folder; and what they hold."""
    (folder / ".git").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / ".git" / "HEAD").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "thesis.tex").write_text("mine")
    (folder / "link").symlink_to(outside)
    return texts(folder)


def test_files_of_others_stay(tmp_path):
    before = foreign(tmp_path / "model")
    for config in ("a", "b"):
        fill(tmp_path / "model", config=config, **{config: "x"})
        assert texts(tmp_path / "model") == {**before, "config": config, config: "x"}
    remove_owned(tmp_path / "model")
    assert texts(tmp_path / "model") == before
    assert (tmp_path / "model" / "empty").is_dir()
    assert (tmp_path / "outside" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("there", ["file", "link", "folder"])
def test_a_name_that_another_has_is_refused_and_nothing_changes(tmp_path, there):
    place = tmp_path / "model"
    before = foreign(place)
    if there == "file":
        (place / "config").write_text("mine")
    elif there == "link":
        (place / "config").symlink_to(tmp_path / "outside" / "thesis.tex")
    else:
        (place / "config").mkdir()
    with pytest.raises(WriteError, match=r"model/config: hf_transfer did not write"):
        fill(place, new="a", config="b")
    with pytest.raises(WriteError, match=r"model/config: hf_transfer did not write"):
        add_text(place, "config", "b", "model")
    assert {**before, **texts(place)} == texts(place)
    assert not (place / "new").exists()
    assert (tmp_path / "outside" / "thesis.tex").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["model", "outside"]


def test_a_file_of_ours_that_became_a_link_is_anothers(tmp_path):
    fill(tmp_path / "model", config="a")
    (tmp_path / "else").write_text("mine")
    (tmp_path / "model" / "config").unlink()
    (tmp_path / "model" / "config").symlink_to(tmp_path / "else")
    with pytest.raises(WriteError, match="did not write"):
        fill(tmp_path / "model", config="b")
    remove_owned(tmp_path / "model")
    assert (tmp_path / "model" / "config").is_symlink()
    assert (tmp_path / "else").read_text() == "mine"


def test_a_link_to_a_folder_is_followed_and_stays(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    for config in ("a", "b"):
        fill(tmp_path / "model", config=config)
    assert (tmp_path / "model").is_symlink()
    assert texts(tmp_path / "disk") == {"config": "b"}


def test_a_mark_that_names_files_elsewhere_is_no_leave_to_remove_them(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    mark(tmp_path / "model", "model")
    text = f'{{"hf_transfer": "model", "files": ["../thesis.tex", "{tmp_path}/thesis.tex", 3]}}'
    (tmp_path / "model" / MARK).write_text(text)
    remove_owned(tmp_path / "model")
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"hf_transfer": 3, "files": 4}', "[" * 100_000])
def test_a_mark_that_is_none_makes_nothing_ours(tmp_path, text):
    (tmp_path / MARK).write_text(text)
    (tmp_path / "notes").write_text("mine")
    assert kind_of(tmp_path) is None
    assert owned(tmp_path) == set()
    remove_owned(tmp_path)
    assert (tmp_path / "notes").exists()


class Unlike(Exception):
    """An error that is not about files."""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (Unlike("Error: IoError(Os: No space left on device (os error 28))"), "No space left"),
        (RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter"), "disk"),
    ],
)
def test_a_disk_that_fills_is_one_line_and_what_was_there_stays(tmp_path, error, says):
    fill(tmp_path / "model", config="a")

    def fail() -> None:
        with written_folder(tmp_path / "model", "model") as aside:
            (aside / "config").write_text("b")
            raise error

    with pytest.raises(WriteError, match=says) as caught:
        fail()
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'model'}: ")
    assert texts(tmp_path / "model") == {"config": "a"}
    assert os.listdir(tmp_path) == ["model"]


def test_a_failure_of_another_kind_goes_through_and_leaves_nothing(tmp_path):
    with pytest.raises(Unlike), written_folder(tmp_path / "model", "model"):
        raise Unlike("a mistake in the program")
    assert os.listdir(tmp_path) == []


def _write_slowly(place: Path) -> None:
    with written_folder(place, "model") as aside:
        (aside / "config").write_text("half")
        time.sleep(60)


def test_what_a_killed_process_left_goes_with_the_next_and_what_is_being_written_does_not(tmp_path):
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_write_slowly, args=(tmp_path / "model",)) for _ in range(2)]
    for child in children:
        child.start()
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob(".model.*/config"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(children[0].pid, signal.SIGKILL)
    children[0].join()
    (tmp_path / ".model.mine.part").mkdir()  # of the same form, but without our mark
    fill(tmp_path / "model", config="a")
    assert len(list(tmp_path.glob(".model.*.part/config"))) == 1
    assert (tmp_path / ".model.mine.part").is_dir()
    children[1].terminate()
    children[1].join()


def test_a_text_is_written_whole_and_not_through_a_link_beside_it(tmp_path):
    write_text(tmp_path / "a" / "x.txt", "one\udcff")
    assert (tmp_path / "a" / "x.txt").read_text() == "one\\udcff"
    write_text(tmp_path / "a" / "x.txt", "two")
    assert os.listdir(tmp_path / "a") == ["x.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"cannot write .*file/x: .*; free space or choose"):
        write_text(tmp_path / "file" / "x", "text")


def test_a_text_that_is_added_is_ours_from_then_on(tmp_path):
    fill(tmp_path / "model", config="a")
    for text in ("card", "another"):
        add_text(tmp_path / "model", "README.md", text, "model")
    assert owned(tmp_path / "model") == {"config", "README.md"}
    fill(tmp_path / "model", config="b")
    assert texts(tmp_path / "model") == {"config": "b"}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_what_a_file_grew_by_since_its_size_was_asked_for_is_read_too():
    assert b"VmPeak" in read_limited("/proc/self/status")  # which says that it has 0 bytes


def test_reading_a_small_file_takes_no_memory_of_the_largest(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    tracemalloc.start()
    try:
        assert read_limited(tmp_path / "file") == b"12345"
        with reading.opened(tmp_path / "file") as data:
            assert data == b"12345"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_only_regular_files_within_the_limit_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_limited(tmp_path / "file", 5) == b"12345"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, limit, code in (
        ("file", 4, errno.EFBIG),
        ("pipe", 9, errno.EINVAL),
        ("zero", 9, errno.EINVAL),
        ("", 9, errno.EISDIR),
        ("none", 9, errno.ENOENT),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011  # the number is what is compared
            read_limited(tmp_path / name, limit)
        assert caught.value.errno == code, name
