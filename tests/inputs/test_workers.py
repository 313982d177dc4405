"""Data workers end with the process that they work for, however early that is killed."""

import os
import signal
import time
from pathlib import Path

import pytest
from children import python

# A process whose first worker notes its own number, kills its parent and waits until it is gone.
CODE = """
import os, signal, sys, time
from torch.utils.data import DataLoader
from hf_transfer.inputs.workers import attached

def begin(worker):
    parent = os.getppid()
    open(sys.argv[1], "w").write(str(os.getpid()))
    os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.01)

loader = DataLoader(range(4), num_workers=1, worker_init_fn=begin, multiprocessing_context="fork")
for _ in attached(loader) if sys.argv[2] == "attached" else loader:
    pass
"""


def _alive(process: int) -> bool:
    try:  # what has ended and is not yet collected is a zombie
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks into /proc")
@pytest.mark.parametrize("how", ["attached", "plain"])
def test_a_worker_whose_process_is_killed_as_it_begins_ends(tmp_path, how):
    """A plain one of torch's stays for ever, which is why there is ours."""
    words = [str(tmp_path / "worker"), how]
    done = python(CODE, *words, folder=tmp_path, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL, done.stderr
    worker = int((tmp_path / "worker").read_text())
    until = time.monotonic() + (20 if how == "attached" else 1)
    while _alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    still = _alive(worker)
    if still:
        os.kill(worker, signal.SIGKILL)
    assert still == (how == "plain")
