"""Load test of the page: many visitors at once on 127.0.0.1, half of them training.

    python tests/benchmarks/visitors.py --visitors 20 --minutes 10

Each visitor is a `gradio_client` of its own. Half of them train again and again; the others load
the page and ask what an image shows. Every page must come, and every call must be answered or told
its place in the queue; afterwards the memory of the server with all its processes must be within
100 MB of what it was before. Ends with status 1 where that is not so.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

ALLOWED_MB = 100.0
SETTLE_SECONDS = 30.0


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process and all below it, shared pages in shares."""
    total = 0.0
    for one in _family(pid):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


def _family(pid: int) -> list[int]:
    found, left = [], [pid]
    while left:
        one = left.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                left += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def archive(path: Path, seed: int) -> Path:
    """Write a small zip of folders of its own."""
    from drawn import picture

    with zipfile.ZipFile(path, "w") as found:
        for at, label in enumerate(("one", "two")):
            for i in range(8):
                out = io.BytesIO()
                picture(1000 * seed + 100 * at + i, 48, 48).save(out, "PNG")
                found.writestr(f"{label}/{i}.png", out.getvalue())
    return path


class Visitor(threading.Thread):
    """One visitor, who trains or asks until the time is over."""

    def __init__(self, number: int, address: str, trains: bool, until: float, scratch: Path):
        super().__init__(daemon=True)
        self.number, self.address, self.trains, self.until = number, address, trains, until
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self.scratch = scratch
        self.took: list[float] = []  # seconds of each call

    def run(self) -> None:
        """Call again and again."""
        from gradio_client import Client

        try:
            client = Client(self.address, verbose=False)
            while time.monotonic() < self.until:
                started = time.monotonic()
                (self._train if self.trains else self._ask)(client)
                self.took.append(time.monotonic() - started)
            client.close()
        except Exception as error:  # of any class: it is counted
            self.errors.append(f"{type(error).__name__}: {error}")

    def _train(self, client) -> None:
        from gradio_client import handle_file

        path = archive(self.scratch / f"{self.number}.zip", self.number)
        job = client.submit(handle_file(str(path)), "model", "exact_head", 32, api_name="/train")
        state = ""
        for progress, _ in job:
            state = progress["state"]
            self.done["times told its place"] += state == "waiting"
        job.result()
        self.done["trained"] += state == "done"

    def _ask(self, client) -> None:
        from drawn import picture
        from gradio_client import handle_file

        with urllib.request.urlopen(self.address, timeout=60) as page:
            self.done["pages"] += page.status == 200
        path = self.scratch / f"{self.number}.png"
        picture(self.number, 200, 150).save(path)
        answer = client.predict(handle_file(str(path)), "", api_name="/predict")
        self.done["answered"] += bool(answer)
        time.sleep(0.5)


def main() -> int:
    """Run the load test and print what came out."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--visitors", type=int, default=20)
    arguments.add_argument("--minutes", type=float, default=10.0)
    asked = arguments.parse_args()
    from tiny_model import tiny_run

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        run = tiny_run(scratch / "model-of-flowers")
        server, address = serve(run)
        try:
            warm = Visitor(999, address, True, time.monotonic() + 1, scratch)
            warm.run()
            time.sleep(SETTLE_SECONDS)
            before = memory_mb(server.pid)
            until = time.monotonic() + 60 * asked.minutes
            count = asked.visitors
            everyone = [Visitor(i, address, i % 2 == 0, until, scratch) for i in range(count)]
            for one in everyone:
                one.start()
            for one in everyone:
                one.join()
            time.sleep(SETTLE_SECONDS)
            after = memory_mb(server.pid)
        finally:
            asked_to_end = time.monotonic()
            server.terminate()
            server.wait(60)
            print(f"the server ended {time.monotonic() - asked_to_end:.1f} s after it was asked to")
    return told(everyone, before, after)


def told(everyone: list[Visitor], before: float, after: float) -> int:
    """Print what came out; return the status."""
    errors = [error for one in everyone for error in one.errors]
    done = sum((one.done for one in everyone), Counter())
    idle = [one.number for one in everyone if not one.done and not one.errors]
    print(f"{len(everyone)} visitors: {dict(done)}")
    for what, trains in (("a training", True), ("an answer", False)):
        took = sorted(seconds for one in everyone if one.trains == trains for seconds in one.took)
        if took:
            middle, late = took[len(took) // 2], took[int(0.95 * (len(took) - 1))]
            print(
                f"{what} with its page and its wait: median {middle:.1f} s, 95% within "
                f"{late:.1f} s, longest {took[-1]:.1f} s"
            )
    print(f"memory {before:.0f} MB before, {after:.0f} MB after")
    print(f"{len(errors)} errors; never served: {idle or 'nobody'}")
    for error in errors[:10]:
        print(f"  {error}")
    return int(bool(errors or idle) or after - before > ALLOWED_MB)


def serve(run: Path):
    """Start the Space's own app; return its process and its address."""
    import os
    import socket
    import subprocess
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "GRADIO_SERVER_PORT": str(port), "MODEL": str(run)}
    env["BACKBONES"] = str(run / "model")
    server = subprocess.Popen([sys.executable, str(ROOT / "spaces/demo/app.py")], env=env)
    address = f"http://127.0.0.1:{port}/"
    for _ in range(600):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return server, address
        except OSError:
            time.sleep(0.2)
    raise SystemExit("nothing answers")


if __name__ == "__main__":
    sys.exit(main())
