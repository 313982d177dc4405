"""Visitors apart from each other: folders, limits, and what goes when they leave."""

import asyncio
import os
import stat
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from drawn import picture

from hf_transfer.base.files import mark
from hf_transfer.space.examples import add_digits
from hf_transfer.space.jobs import Job
from hf_transfer.space.limits import Limits, Refused
from hf_transfer.space.networks import chosen
from hf_transfer.space.visitors import PREFIX, Visitors


@pytest.fixture
def visitors(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = Visitors(Limits(kept_seconds=100, visitors=3))
    yield found
    found.close()


def test_each_visitor_has_a_folder_that_nobody_can_guess(visitors):
    one, two = visitors.of("one"), visitors.of("two")
    assert one.folder != two.folder
    assert len(one.folder.name) >= 32
    assert "one" not in one.folder.name
    assert stat.S_IMODE(visitors.root.stat().st_mode) == 0o700
    assert visitors.of("one") is one


def test_what_is_not_used_for_an_hour_vanishes(visitors):
    one, two = visitors.of("one"), visitors.of("two")
    (one.folder / "model").mkdir()
    one.job = Job({}, one.folder / "job")
    one.used = time.monotonic() - 101
    visitors.sweep()
    assert not one.folder.exists()
    assert one.job.state == "stopped"
    assert two.folder.exists()
    with pytest.raises(Refused, match="images and models are deleted"):
        visitors.of("one")
    assert visitors.of("one") is not one


def test_what_an_upload_that_broke_off_has_left_vanishes_as_late(visitors):
    whole = visitors.uploads / "abc" / "photo.jpg"
    whole.parent.mkdir(parents=True)
    old, new = visitors.uploads / "tmpold", visitors.uploads / "tmpnew"
    for file in (whole, old, new):
        file.write_bytes(b"pixels")
    for file in (whole, old):
        os.utime(file, (time.time() - 101,) * 2)
    visitors.sweep()
    assert not old.exists()
    assert new.exists()
    assert whole.exists()  # its visitor's, or gradio's to forget


def test_a_visitor_who_leaves_takes_everything_along(visitors):
    one = visitors.of("one")
    one.models["mine"] = object()
    visitors.leave("one")
    assert not one.folder.exists()
    assert one.models == {}


def test_a_lost_connection_stops_the_training_and_keeps_the_rest_for_a_moment(visitors):
    one = visitors.of("one")
    one.models["mine"] = object()
    one.job = Job({}, one.folder / "job")
    visitors.away("one")
    visitors.sweep()
    assert visitors.of("one") is one
    assert one.models
    assert one.job.state == "stopped"
    one.used = time.monotonic() - 40
    visitors.sweep()
    assert one.folder.exists()  # heard of since
    visitors.away("one")
    one.left -= Limits().away_seconds + 1
    visitors.sweep()
    assert not one.folder.exists()


def test_whoever_comes_back_to_nothing_is_told_once_and_only_of_what_they_had(visitors):
    for name in ("had", "looked"):
        visitors.of(name)
    visitors.of("had").models["mine"] = object()
    for name in ("had", "looked"):
        visitors.leave(name)
    with pytest.raises(Refused, match="images and models are deleted.* Load the page again"):
        visitors.of("had")
    assert visitors.of("had").models == {}
    assert visitors.of("looked")


def test_whoever_has_nothing_here_makes_room_the_idlest_first(visitors):
    idle, idlest, busy = (visitors.of(name) for name in "abc")
    idlest.used -= 10
    busy.used -= 20
    busy.models["mine"] = object()
    visitors.of("d")
    assert not idlest.folder.exists()
    assert visitors.of("a") is idle
    assert visitors.of("c") is busy


def test_more_visitors_than_the_page_serves_are_told(visitors):
    for name in "abc":
        visitors.of(name).models["mine"] = object()
    with pytest.raises(Refused, match="3 visitors are here"):
        visitors.of("d")


def test_a_request_without_a_session_is_refused(visitors):
    with pytest.raises(Refused, match="needs a session"):
        visitors.of(None)


def test_what_a_dead_server_left_goes_and_what_another_uses_stays(visitors, tmp_path):
    dead = tmp_path / f"{PREFIX}dead"
    mark(dead, "space")
    foreign = tmp_path / f"{PREFIX}thesis"
    foreign.mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(foreign)
    mark(foreign, "run")
    other = Visitors(Limits())
    other.close()
    assert not dead.exists()
    assert foreign.exists()
    assert visitors.root.exists()


def test_a_visitor_who_sends_a_lot_holds_up_nobody_who_follows_a_training(visitors):
    from hf_transfer.space import training

    one = visitors.of("one")
    job = Job({"ways": {}, "steps": {}}, one.folder / "job", state="running")
    job.events.append({"kind": "model", "way": "mine", "accuracy": 0.5})

    held, over = threading.Event(), threading.Event()

    def send() -> None:
        with one.lock:
            held.set()
            time.sleep(1)
            over.set()

    async def others_go_on() -> bool:
        site = SimpleNamespace(visitors=visitors, limits=visitors.limits)
        following = asyncio.create_task(anext(training.follow(site, one, job)))
        await asyncio.sleep(0.1)
        free = not over.is_set()
        await following
        return free

    sender = threading.Thread(target=send)
    sender.start()
    held.wait(10)
    with ThreadPoolExecutor(1) as server:  # a browser's test may have a loop in this thread
        assert server.submit(lambda: asyncio.run(others_go_on())).result()
    sender.join()


HERE = {"nice": "/somewhere/nice", "timm/a": "timm/a"}


@pytest.mark.parametrize(
    "name",
    ["/etc", "~/x", "../../model", ".", "timm/../../x", "transformers//etc", "a/b/c", "", "x"],
)
def test_no_choice_of_a_network_reaches_a_path_of_the_server(name):
    with pytest.raises(Refused, match="is not a known network"):
        chosen(name, HERE, offline=False)


def test_a_folder_of_the_server_is_not_taken_for_a_name_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match="is not a known network"):
        chosen("owner/name", {}, offline=False)


def test_networks_that_are_here_and_names_on_the_hub_can_be_chosen():
    assert chosen("nice", HERE, offline=True) == "/somewhere/nice"
    assert chosen("timm/resnet18.a1_in1k", HERE, offline=False) == "timm/resnet18.a1_in1k"
    with pytest.raises(Refused, match="this machine, which is offline"):
        chosen("timm/resnet18.a1_in1k", HERE, offline=True)
    assert Path("/somewhere").exists() is False


def test_the_example_and_a_visitors_own_images_do_not_mix_and_none_go_while_they_train(
    visitors, tmp_path
):
    from hf_transfer.space import training
    from hf_transfer.space.clicks import Clicks

    site = SimpleNamespace(visitors=visitors, limits=visitors.limits)
    request, clicks = SimpleNamespace(session_hash="one"), Clicks(site)
    one = visitors.of("one")
    picture(1).save(tmp_path / "rose.png")
    clicks.add_files("rose", [str(tmp_path / "rose.png")], request)
    add_digits(one.example)
    one.digits = True
    assert one.pictures.labels == tuple("0123456789")
    picture(2).save(tmp_path / "daisy.png")
    clicks.add_files("daisy", [str(tmp_path / "daisy.png")], request)
    assert one.pictures.labels == ("rose", "daisy")
    assert len(one.example.kept) == 220  # the example's models still show them
    one.job = Job({}, one.folder / "job", state="running")
    for change in (
        lambda: clicks.start_over(request),
        lambda: clicks.drop(SimpleNamespace(label="rose"), request),
        lambda: training.start_example(site, one),
    ):
        with pytest.raises(Refused, match="still running"):
            change()
    assert one.pictures.labels == ("rose", "daisy")
