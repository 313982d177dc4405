"""The queue: places, one process each, an end that comes; with a stand-in for the real worker."""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from hf_transfer.space import jobs as queue
from hf_transfer.space.jobs import Job, Jobs
from hf_transfer.space.limits import Limits, Refused

WORKER = """
import gc, json, subprocess, sys, time
from hf_transfer.space.nursery import Told, serve
def work(folder):
    asked, told = json.loads((folder / "job.json").read_text()), Told(folder)
    told("way", way="one", shared=gc.get_freeze_count())
    if asked.get("child"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        told("child", pid=child.pid)
    if asked.get("memory"):
        sys.exit(137)
    if asked.get("why"):
        told("failed", why=asked["why"])
        return
    time.sleep(asked.get("seconds", 0))
    told("done")
if __name__ == "__main__":
    time.sleep(float(sys.argv[1]))  # imports
    serve(work)
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Return queues of given limits whose processes run the stand-in."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    popen = queue.subprocess.Popen
    found = []

    def start(imports: float = 0.0, **limits: float) -> Jobs:
        def stand_in(command, **options):
            return popen([sys.executable, str(script), str(imports)], **options)

        monkeypatch.setattr(queue.subprocess, "Popen", stand_in)
        found.append(Jobs(Limits(**limits), tmp_path / "log"))
        return found[-1]

    yield start
    for one in found:
        one.close()


def until(condition, seconds: float = 30.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


def job(tmp_path: Path, name: str, **asked: object) -> Job:
    return Job(dict(asked), tmp_path / name)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_trains_at_a_time_and_the_others_know_their_place(started, tmp_path):
    jobs = started()
    all_of_them = [jobs.submit(job(tmp_path, f"{i}", seconds=1.0)) for i in range(3)]
    until(lambda: all_of_them[0].state == "running")
    assert [jobs.place(one) for one in all_of_them] == [0, 1, 2]
    assert len(until(lambda: jobs.processes)) == 1
    until(lambda: all(one.is_over for one in all_of_them))
    assert [one.state for one in all_of_them] == ["done"] * 3
    starts = [one.started for one in all_of_them]
    assert starts == sorted(starts)
    assert all(b.started >= a.ended for a, b in zip(all_of_them, all_of_them[1:], strict=False))


def test_stop_ends_the_process_and_all_that_it_started(started, tmp_path):
    jobs = started()
    one = jobs.submit(job(tmp_path, "one", seconds=600, child=True))
    until(lambda: any(event["kind"] == "child" for event in one.events))
    child = next(event["pid"] for event in one.events if event["kind"] == "child")
    (pid,) = jobs.processes
    one.stop()
    until(lambda: one.is_over, 5)
    assert one.state == "stopped"
    until(lambda: not is_alive(pid) and not is_alive(child), 5)
    assert jobs.processes == []


def test_a_training_that_waits_can_be_stopped_and_frees_its_place(started, tmp_path):
    jobs = started()
    first, second, third = (jobs.submit(job(tmp_path, f"{i}", seconds=5)) for i in range(3))
    until(lambda: first.state == "running")
    second.stop()
    assert second.state == "stopped"
    assert jobs.place(third) == 1


def test_a_training_whose_progress_nobody_reads_ends(started, tmp_path):
    jobs = started(lease_seconds=0.5)
    one = jobs.submit(job(tmp_path, "one", seconds=600))
    until(lambda: one.is_over)
    assert (one.state, one.why) == ("stopped", "nobody read its progress")


def test_a_training_ends_at_its_time(started, tmp_path):
    jobs = started(training_seconds=0.5)
    one = jobs.submit(job(tmp_path, "one", seconds=600))
    until(lambda: one.is_over)
    assert (one.state, one.why) == ("stopped", "it took longer than 0.5 seconds")


def test_a_mistake_of_the_visitor_is_told_in_its_words(started, tmp_path):
    one = started().submit(job(tmp_path, "one", why="the images are all alike"))
    until(lambda: one.is_over)
    assert (one.state, one.why) == ("failed", "the images are all alike")


def test_a_process_that_is_killed_is_told_and_the_next_one_trains(started, tmp_path):
    jobs = started()
    one, two = jobs.submit(job(tmp_path, "one", memory=True)), jobs.submit(job(tmp_path, "two"))
    until(lambda: one.is_over and two.is_over)
    assert (one.state, two.state) == ("failed", "done")
    assert "perhaps memory ran out" in one.why


def test_a_full_queue_refuses_with_a_sentence(started, tmp_path):
    jobs = started(waiting=2, trainings=0)
    for i in range(2):
        jobs.submit(job(tmp_path, f"{i}"))
    with pytest.raises(Refused, match="2 trainings are waiting, the most"):
        jobs.submit(job(tmp_path, "more"))


def test_the_end_of_the_server_ends_its_processes(started, tmp_path):
    jobs = started()
    one = jobs.submit(job(tmp_path, "one", seconds=600))
    until(lambda: one.state == "running")
    (pid,) = until(lambda: jobs.processes)
    jobs.close()
    assert not is_alive(pid)


def test_all_trainings_are_forks_of_the_process_that_imported(started, tmp_path):
    jobs = started(trainings=2)
    pair = [jobs.submit(job(tmp_path, f"{i}", seconds=600)) for i in range(2)]
    pids = until(lambda: jobs.processes if len(jobs.processes) == 2 else None)
    assert len({psutil.Process(pid).ppid() for pid in pids}) == 1
    assert [one.state for one in pair] == ["running"] * 2
    until(lambda: all(one.events for one in pair))
    assert all(one.events[0]["shared"] > 1000 for one in pair)  # objects that are not copied


def test_trainings_end_with_that_process_and_the_next_has_another(started, tmp_path):
    jobs = started()
    one = jobs.submit(job(tmp_path, "one", seconds=600, child=True))
    (pid,) = until(lambda: jobs.processes)
    psutil.Process(pid).parent().kill()
    until(lambda: one.is_over)
    assert one.state == "failed"
    assert not is_alive(pid)
    two = jobs.submit(job(tmp_path, "two"))
    until(lambda: two.is_over)
    assert two.state == "done"


def test_a_training_that_is_stopped_before_it_begins_never_does(started, tmp_path):
    jobs = started(imports=1.0)
    one, two = (jobs.submit(job(tmp_path, name)) for name in ("one", "two"))
    until(lambda: one.state == "running")
    one.stop()
    until(lambda: two.is_over)
    assert (one.state, one.events, two.state) == ("stopped", [], "done")


def test_a_training_gets_no_secret_of_the_server(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    monkeypatch.setenv("OAUTH_CLIENT_SECRET", "secret")
    found = queue._environment()
    assert "HF_TOKEN" not in found
    assert "OAUTH_CLIENT_SECRET" not in found
    assert found["PATH"] == os.environ["PATH"]
