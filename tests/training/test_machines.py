"""Two machines for real: network namespaces with an address each, and a link between them."""

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from accelerate.commands import launch
from children import ended, join, start
from PIL import Image
from small import untimed

from hf_transfer.cli import main

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 15  # after which a machine that does not answer is lost, in these tests
NAMES = ("left", "right")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29500
NEW_NET, NEW_HOST = 0x40000000, 0x04000000  # CLONE_NEWNET and CLONE_NEWUTS of Linux


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def enter(folder, place):
    """Be a process of one machine, place = (rank, namespace, link, name)."""
    _, space, link, name = place
    system = ctypes.CDLL(None)
    with open(f"/run/netns/{space}") as net:
        assert system.setns(net.fileno(), NEW_NET) == 0
    assert system.unshare(NEW_HOST) == 0
    socket.sethostname(name)
    os.environ |= {"GLOO_SOCKET_IFNAME": link, "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"HF_TRANSFER_PEER_SECONDS": str(SECONDS)}
    os.chdir(folder)


def launch_on(folder, place, words):
    """Be the launcher of one machine, which starts the process that trains afresh."""
    enter(folder, place)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    sys.argv = ["accelerate launch", *words]
    launch.main()


def train_on(folder, place, words, slow):
    """Be the process that trains, as a launcher would have it; each step takes `slow` seconds
    longer."""
    enter(folder, place)
    join(place[0], 2, PORT)
    os.environ |= {"MASTER_ADDR": ADDRESSES[0], "LOCAL_RANK": "0"}
    from hf_transfer.training.trainer import TransferTrainer

    real = TransferTrainer.training_step
    TransferTrainer.training_step = lambda *args: time.sleep(slow) or real(*args)
    raise SystemExit(main(words))


class Machines:
    """Two namespaces on this machine, each with a host name, an address and a launcher."""

    def __init__(self, folder):
        self.folder, self.tag = folder, f"hft{os.getpid() % 10000}"
        self.spaces = [f"{self.tag}{name}" for name in NAMES]
        self.links = [f"{self.tag}{name[0]}" for name in NAMES]

    def up(self):
        """Make them; return why that is not possible here, or nothing."""
        if not all(map(shutil.which, ("ip", "unshare", "hostname"))):
            return "ip, unshare or hostname is not installed"
        steps = [["ip", "netns", "add", space] for space in self.spaces]
        steps.append(["ip", "link", "add", self.links[0], "type", "veth", "peer", "name",
                      self.links[1]])  # fmt: skip
        for space, link, address in zip(self.spaces, self.links, ADDRESSES, strict=True):
            inside = ["ip", "-n", space]
            steps += [
                ["ip", "link", "set", link, "netns", space],
                [*inside, "addr", "add", f"{address}/24", "dev", link],
                [*inside, "link", "set", link, "up"],
                [*inside, "link", "set", "lo", "up"],
            ]
        steps.append(["ip", "netns", "exec", self.spaces[0], "unshare", "--uts", "hostname", "x"])
        for step in steps:
            result = run(*step)
            if result.returncode:
                return f"{' '.join(step[:3])}: {result.stderr.strip() or 'refused'}"
        return ""

    def launch(self, out):
        """Start a training on both, one process each, as a user would; return their launchers."""
        config = ROOT / "recipes" / "accelerate" / "two_machines.yaml"
        words = ["--config_file", str(config), "--num_processes", "2"]
        words += ["--main_process_ip", ADDRESSES[0], "--machine_rank"]
        more = ["-m", "hf_transfer", "train", "small.yaml", "--out", out]
        return self.start(launch_on, lambda rank: ([*words, str(rank), *more],))

    def begin(self, out, *more, slow=0.0):
        """Start the same without launchers, which take seconds to load; return both processes."""
        words = ["train", "small.yaml", "--out", out, *more]
        return self.start(train_on, lambda rank: (words, slow))

    def start(self, work, given):
        """Start some work on both machines, with what each is given; return their processes."""
        children = []
        for place in zip(range(2), self.spaces, self.links, NAMES, strict=True):
            log = self.folder / f"{place[-1]}.log"
            log.unlink(missing_ok=True)
            children.append(start(work, log, self.folder, place, *given(place[0])))
        return children

    def log(self, name):
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, text, runs, seconds=200):
        """Wait until the left machine says something; `runs` tells whether it still can."""
        until = time.monotonic() + seconds
        while text not in self.log("left"):
            assert time.monotonic() < until, self.log("left")[-3000:]
            assert runs(), self.log("left")[-3000:]
            time.sleep(0.1)

    def send(self, which, number):
        """Send a signal to all processes of a machine at once."""
        for pid in run("ip", "netns", "pids", self.spaces[which]).stdout.split():
            os.kill(int(pid), number)

    def link(self, state):
        run("ip", "-n", self.spaces[1], "link", "set", self.links[1], state)

    def down(self):
        for which, space in enumerate(self.spaces):
            self.send(which, signal.SIGKILL)
            run("ip", "netns", "del", space)

    def end(self, out):
        """Return what a finished run came to: weights, metrics, history; without its times."""
        report = json.loads((self.folder / out / "report.json").read_text())
        assert [phase["checks"]["ranks"] for phase in report["phases"]] == [2, 2]
        history = [untimed(phase["history"]) for phase in report["phases"]]
        weights = (self.folder / out / "model" / "model.safetensors").read_bytes()
        return weights, report["metrics"], history


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machines")
    made = Machines(folder)
    try:
        reason = made.up()
        if reason:
            pytest.skip(f"network namespaces are not permitted here ({reason})")
        random = np.random.default_rng(0)
        for name in ("cat", "dog"):
            (folder / "images" / name).mkdir(parents=True)
            for i in range(12):
                pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
        # With on_nan: rollback there is a checkpoint at the end of each epoch.
        (folder / "small.yaml").write_text(
            "backbone: timm/test_vit\npretrained: false\n"
            "data: {path: images, validation: 0.5, image_size: 32}\nphases:\n"
            "  - {train: head, epochs: 1, batch_size: 2}\n"
            "  - {train: all, epochs: 15, lr: 1e-4, batch_size: 2, augment: light, best: last, "
            "on_nan: rollback}\n"
        )
        yield made
    finally:
        made.down()


def lost(machines, name="left", other="right"):
    """Check what a machine says of one that does not answer: its name, and how to go on."""
    said = re.findall("hf-transfer: error: .*", machines.log(name))
    assert said, machines.log(name)[-3000:]
    assert f"phase all: machine {other} does not answer" in said[0]
    assert "--resume" in said[0]


@pytest.mark.slow
def test_a_machine_that_vanishes_ends_the_other_with_its_name_and_the_run_resumes_exactly(machines):
    """First the link fails, then both are asked to stop, then one has no power any more."""
    assert [ended(child) for child in machines.begin("unbroken")] == [0, 0], machines.log("left")

    launchers = machines.launch("out")
    machines.wait_for("epoch 3 of 15", launchers[0].is_alive)
    machines.link("down")
    assert 0 not in [ended(launcher, SECONDS + 100) for launcher in launchers]
    lost(machines)
    lost(machines, "right", "left")
    machines.link("up")

    children = machines.begin("out", "--resume", slow=0.2)
    machines.wait_for("epoch 6 of 15", children[0].is_alive)
    for which in range(2):
        machines.send(which, signal.SIGTERM)
    assert [ended(child) for child in children] == [143, 143], machines.log("left")
    assert "stopped by SIGTERM in phase all; saved checkpoint-" in machines.log("left")

    children = machines.begin("out", "--resume", slow=0.2)
    machines.wait_for("epoch 9 of 15", children[0].is_alive)
    machines.send(1, signal.SIGKILL)
    assert ended(children[0]) == 2, machines.log("left")
    lost(machines)

    children = machines.begin("out", "--resume")
    assert [ended(child) for child in children] == [0, 0], machines.log("left")
    for before in ("phase 1 head", "epoch 1 of 15", "epoch 5 of 15"):  # it goes on in the phase
        assert before not in machines.log("left")
    assert machines.end("out") == machines.end("unbroken")
