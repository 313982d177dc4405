"""Two machines for real: network namespaces with an address each, and a link between them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import untimed

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 8  # after which a machine that does not answer is lost, in these tests
NAMES = ("left", "right")
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


class Machines:
    """Two namespaces on this machine, each with a host name, an address and a launcher."""

    def __init__(self, folder):
        self.folder, self.tag = folder, f"hft{os.getpid() % 10000}"
        self.spaces = [f"{self.tag}{name}" for name in NAMES]
        self.links = [f"{self.tag}{name[0]}" for name in NAMES]
        self.launchers = []

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

    def start(self, out, *more):
        """Start the same training on both, one process each, as a user would."""
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "HF_TRANSFER_PEER_SECONDS": str(SECONDS),
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        config = ROOT / "recipes" / "accelerate" / "two_machines.yaml"
        self.launchers = []
        for rank, (space, link, name) in enumerate(
            zip(self.spaces, self.links, NAMES, strict=True)
        ):
            launch = [
                sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config),
                "--num_processes", "2", "--machine_rank", str(rank),
                "--main_process_ip", ADDRESSES[0], "-m", "hf_transfer", "train", "small.yaml",
                "--out", out, *more,
            ]  # fmt: skip
            line = f"hostname {name} && exec {' '.join(launch)}"
            inside = ["ip", "netns", "exec", space, "unshare", "--uts", "sh", "-c", line]
            own = {**environment, "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": link}
            with (self.folder / f"{name}.log").open("w") as log:
                self.launchers.append(
                    subprocess.Popen(
                        inside, cwd=self.folder, stdout=log, stderr=log, env=own,
                        start_new_session=True,
                    )
                )  # fmt: skip

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def wait_for(self, text, name="left", seconds=120):
        until = time.monotonic() + seconds
        while text not in self.log(name):
            assert time.monotonic() < until, self.log(name)[-3000:]
            assert self.launchers[0].poll() is None, self.log(name)[-3000:]
            time.sleep(0.1)

    def statuses(self, seconds=200):
        return [launcher.wait(seconds) for launcher in self.launchers]

    def kill(self, which):
        """End all processes of a machine at once, as when its power fails."""
        os.killpg(self.launchers[which].pid, signal.SIGKILL)
        for pid in run("ip", "netns", "pids", self.spaces[which]).stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        self.launchers[which].wait(30)

    def down(self):
        for which, launcher in enumerate(self.launchers):
            if launcher.poll() is None:
                self.kill(which)
        for space in self.spaces:
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


@pytest.fixture(scope="module")
def unbroken(machines):
    """The end of a run on two machines that was never interrupted."""
    machines.start("unbroken")
    assert machines.statuses() == [0, 0], machines.log("left")[-3000:]
    return machines.end("unbroken")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["link", "power"])
def test_a_machine_that_vanishes_ends_the_other_with_its_name_and_the_run_resumes_exactly(
    machines, unbroken, loss
):
    machines.start(loss)
    machines.wait_for("epoch 3 of 15")
    lost = time.monotonic()
    if loss == "link":
        run("ip", "-n", machines.spaces[1], "link", "set", machines.links[1], "down")
    else:
        machines.kill(1)
    assert machines.launchers[0].wait(SECONDS + 45) != 0
    assert time.monotonic() - lost < SECONDS + 45
    said = re.findall("hf-transfer: error: .*", machines.log("left"))
    assert said, machines.log("left")[-3000:]
    assert said[0].startswith("hf-transfer: error: phase all: machine right does not answer")
    assert "--resume" in said[0]
    if loss == "link":
        machines.launchers[1].wait(SECONDS + 45)
        assert "phase all: machine left does not answer" in machines.log("right")
        run("ip", "-n", machines.spaces[1], "link", "set", machines.links[1], "up")
        machines.start(loss, "--resume")
        machines.wait_for("epoch 8 of 15")
        for launcher in machines.launchers:
            os.killpg(launcher.pid, signal.SIGTERM)
        machines.statuses()
        assert "stopped by SIGTERM in phase all; saved checkpoint-" in machines.log("left")
    machines.start(loss, "--resume")
    assert machines.statuses() == [0, 0], machines.log("left")[-3000:]
    for before in ("phase 1 head", "epoch 1 of 15"):  # it goes on within the phase
        assert before not in machines.log("left")
    assert machines.end(loss) == unbroken
