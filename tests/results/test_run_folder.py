"""A run's folder: never overwritten, and resumed only by the same run."""

import os
from dataclasses import replace

import pytest

from hf_transfer.base.errors import UserError
from hf_transfer.base.files import written_folder
from hf_transfer.base.locks import LOCK
from hf_transfer.recipe.load import dump_recipe, load_recipe
from hf_transfer.recipe.specs import DataSpec, PhaseSpec, Recipe, SourceSpec
from hf_transfer.results import run_folder
from hf_transfer.results.run_folder import FolderError, keep_inputs, open_folder, opened


def recipe(lr=1e-3, **options):
    made = Recipe("small", (PhaseSpec("head", epochs=1, lr=lr),), backbone="timm/test_resnet")
    return replace(made, **options)


def test_a_new_folder_gets_the_recipe_which_reads_back_equal(tmp_path):
    open_folder(tmp_path / "a" / "b", recipe(), resume=False)
    written = tmp_path / "a" / "b" / "recipe.yaml"
    assert load_recipe(str(written)).phases == recipe().phases
    open_folder(tmp_path / "a" / "b", recipe(), resume=True)


def test_a_folder_in_use_is_refused_without_resume_and_left_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FolderError, match="not empty; choose another folder, or add --resume"):
        open_folder(tmp_path, recipe(), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_cannot_be_resumed_begins_again_where_nothing_was_written_yet(tmp_path):
    out = tmp_path / "out"
    open_folder(out, recipe(), resume=None)  # and then it was killed
    open_folder(out, recipe(lr=2e-3), resume=None)
    (out / "model").mkdir()
    (out / "model" / "config.json").write_text("{}")
    with pytest.raises(FolderError, match=r"is not empty; choose another folder$"):
        open_folder(out, recipe(), resume=None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("mine")
    with pytest.raises(FolderError, match="is not empty"):
        open_folder(tmp_path / "mine", recipe(), resume=None)


def failing(out, resume, *more):
    with opened(out, recipe(), resume):
        keep_inputs(out, {"backbone": "x"})
        for name in more:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).touch()
        raise UserError("no connection")


@pytest.mark.parametrize(("resume", "more", "left"), [
    (False, (), False), (True, (), True), (False, ("checkpoint",), True),
    (False, ("precision.json",), False), (False, ("letters/upper-A/0.png",), True),
    (False, ("source/letters/0.png",), True),
])  # fmt: skip
def test_a_run_that_fails_before_it_trains_leaves_nothing_in_the_way(tmp_path, resume, more, left):
    with pytest.raises(UserError, match="no connection"):
        failing(tmp_path / "run", resume, *more)
    assert (tmp_path / "run").exists() == left


def test_letters_that_were_drawn_go_with_a_run_that_has_not_trained(tmp_path):
    def draw_and_fail():
        with opened(tmp_path / "run", recipe(), False):
            with written_folder(tmp_path / "run" / "letters", "letters") as aside:
                (aside / "upper-A").mkdir()
                (aside / "upper-A" / "0.png").touch()
            raise UserError("no connection")

    with pytest.raises(UserError, match="no connection"):
        draw_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_files_that_a_run_did_not_write_stay_when_it_fails(tmp_path):
    def write_and_fail():
        with opened(tmp_path / "run", recipe(), False):
            (tmp_path / "run" / "notes.txt").write_text("mine")
            raise UserError("no connection")

    with pytest.raises(UserError, match="no connection"):
        write_and_fail()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("theirs", [".", "model", "adapter"])
def test_a_folder_that_hf_transfer_did_not_write_is_not_resumed(tmp_path, theirs):
    """Whatever recipe lies in it, and whichever folder of it is another's."""
    out = tmp_path / "run"
    if theirs != ".":
        open_folder(out, recipe(), resume=False)
    (out / theirs).mkdir(parents=True, exist_ok=True)
    (out / theirs / "recipe.yaml").write_text(dump_recipe(recipe()))
    (out / theirs / "weights.bin").write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(FolderError, match="--resume: hf_transfer did not write"):
            open_folder(out, recipe(), resume=True)
        with pytest.raises(FolderError, match="did not write"), opened(out, recipe(), True):
            pass
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_second_run_in_a_folder_is_told_who_writes_there(tmp_path):
    with opened(tmp_path, recipe(), False):
        message = rf"in use by another run \(process {os.getpid()} on .*, since 2"
        with pytest.raises(UserError, match=message), opened(tmp_path, recipe(), True):
            pass
    with opened(tmp_path, recipe(), True):
        pass


def test_all_processes_of_a_launch_share_one_lock(tmp_path, monkeypatch):
    with opened(tmp_path, recipe(), False):
        there = sorted(tmp_path.iterdir())
        lock = (tmp_path / LOCK).read_bytes()
        monkeypatch.setenv("RANK", "1")
        with opened(tmp_path, recipe(), False):
            assert sorted(tmp_path.iterdir()) == there
        assert (tmp_path / LOCK).read_bytes() == lock  # which is still the first one's
        monkeypatch.delenv("RANK")
    assert not (tmp_path / LOCK).exists()


def test_a_folder_that_cannot_be_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").write_text("mine")
    for name, says in (("file/run/deep", "is below .*file, which is no folder"), ("a\0b", "UTF-8")):
        with pytest.raises(FolderError, match=says):
            open_folder(tmp_path / name, recipe(), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_link_that_leads_nowhere_is_refused(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(FolderError, match="is a link that leads nowhere"):
        open_folder(tmp_path / "run", recipe(), resume=False)
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("name", ["recipe.yaml", "inputs.json"])
@pytest.mark.parametrize("text", [b"\xff", b"[" * 100_000, b"3", b"\0"])
def test_odd_files_in_a_run_are_one_line(tmp_path, name, text):
    open_folder(tmp_path, recipe(), resume=False)
    keep_inputs(tmp_path, {"images": 3})
    (tmp_path / name).write_bytes(text)

    def resume():
        open_folder(tmp_path, recipe(), resume=True)
        keep_inputs(tmp_path, {"images": 3})

    with pytest.raises(UserError, match=name) as caught:
        resume()
    assert "\n" not in str(caught.value)


def test_another_recipe_is_refused_naming_the_line_that_differs(tmp_path):
    open_folder(tmp_path / "run", recipe(), resume=False)
    before = (tmp_path / "run" / "recipe.yaml").read_bytes()
    with pytest.raises(FolderError, match=r"another recipe \(was .*, is .*lr: 0.5"):
        open_folder(tmp_path / "run", recipe(lr=0.5), resume=True)
    with pytest.raises(FolderError, match="is another recipe .*seed: 3"):
        open_folder(tmp_path / "run", recipe(seed=3), resume=True)
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == before


def test_what_changes_no_result_may_be_another_when_a_run_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(path, **options):
        phases = (PhaseSpec("all", epochs=1, cold_head=True),)
        first = SourceSpec("timm/test_resnet", phases, data=DataSpec(path=path))
        return recipe(data=DataSpec(path=path), backbone=None, source=first, **options)

    out = tmp_path / "run"
    open_folder(out, read("photos"), resume=False)
    for path in ("./photos", str(tmp_path / "photos"), "run/../photos"):
        open_folder(out, read(path, workers=1), resume=True)
    assert load_recipe(str(out / "recipe.yaml")).workers == 1
    with pytest.raises(FolderError, match=r"another recipe \(was .*photos', is .*pictures'\)"):
        open_folder(out, read("pictures"), resume=True)
    with pytest.raises(FolderError, match="is 'seed: 3'"):
        open_folder(out, read("./photos", seed=3), resume=True)


def test_a_name_that_weights_cannot_be_read_back_from_is_refused(tmp_path):
    out = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(FolderError, match="is not UTF-8"):
        open_folder(out, recipe(), resume=False)
    assert not out.exists()
    open_folder(tmp_path / "café 😀", recipe(), resume=False)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(FolderError, match="is a file"):
        open_folder(tmp_path / "run", recipe(), resume=True)


def test_other_data_or_weights_are_refused_naming_them(tmp_path):
    first = {"images": 24, "data": "a" * 64, "weights": "b" * 64}
    keep_inputs(tmp_path, first)
    keep_inputs(tmp_path, first)
    with pytest.raises(FolderError, match=r"the images differ .*\(was 24, is 30\)"):
        keep_inputs(tmp_path, {**first, "images": 30})
    with pytest.raises(FolderError, match=r"the weights differ .*\(was bbbbbbbbbbbb…, is ccc") as e:
        keep_inputs(tmp_path, {**first, "weights": "c" * 64})
    assert "\n" not in str(e.value)


def test_only_the_first_process_writes_and_refuses(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "notes.txt").write_text("mine")
    open_folder(tmp_path, recipe(), resume=False)
    keep_inputs(tmp_path, {"images": 3})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_resumed_run_finds_the_number_of_threads_that_it_began_with(tmp_path):
    assert run_folder.threads(tmp_path) is None
    keep_inputs(tmp_path, {"images": 3}, 2)
    keep_inputs(tmp_path, {"images": 3}, 1)
    assert run_folder.threads(tmp_path) == 2
