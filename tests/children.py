"""Training in child processes that are killed, called to stop, or joined by others.

They are forked by a server, itself a fork of the process of the tests from before the first of them
ran: so none imports anything, and what tests do to their process does not reach them.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import json
import logging
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import disable_progress_bars
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

SHARD_BYTES = 1024  # of a file of features: so that there are several
FORK = multiprocessing.get_context("fork")
SERVER: list[Connection] = []  # to the server, once it runs
ASKING = threading.Lock()


def begin() -> None:
    """Fork the server of all children off this process, which has imported what they need."""
    if SERVER:
        return
    here, there = multiprocessing.Pipe()
    gc.freeze()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads that wait are not forked
        if os.fork() == 0:
            here.close()
            try:
                _serve(there)
            finally:
                os._exit(0)
    there.close()
    SERVER.append(here)


def _serve(asked: Connection) -> None:
    """Start a child for each work that is asked for and answer with its number; answer a number
    with the exit status of that child, None while it runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _warn_as_python_does()
    importlib.import_module("preloaded")
    children = {}
    with contextlib.suppress(EOFError):  # once the process of the tests has ended
        while True:
            given = asked.recv()
            if isinstance(given, int):
                asked.send(children[given].exitcode)
                continue
            child = FORK.Process(target=_child, args=(asked, *given))
            child.start()
            children[child.pid] = child
            asked.send(child.pid)


def _warn_as_python_does() -> None:
    """Forget that warnings are errors here, and are kept for pytest."""

    def told(*warning: Any) -> None:
        with contextlib.suppress(OSError):  # that nothing can be written is what a test is about
            sys.stderr.write(warnings.formatwarning(*warning[:4]))

    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
    warnings.showwarning = told


class Child:
    """A process that the server started, as `multiprocessing.Process` has it."""

    def __init__(self, pid: int) -> None:
        self.pid, self._status = pid, None

    @property
    def exitcode(self) -> int | None:
        if self._status is None:
            self._status = _ask(self.pid)
        return self._status

    def is_alive(self) -> bool:
        return self.exitcode is None

    def join(self, seconds: float | None = None) -> None:
        until = time.monotonic() + (1e9 if seconds is None else seconds)
        while self.is_alive() and time.monotonic() < until:
            time.sleep(0.05)

    def kill(self) -> None:
        if self.is_alive():
            os.kill(self.pid, signal.SIGKILL)


def _ask(what: Any) -> Any:
    with ASKING:
        SERVER[0].send(what)
        return SERVER[0].recv()


def start(work: Callable[..., Any], *args: Any) -> Child:
    """Start a child that does some work; `work` and its arguments can be pickled."""
    begin()
    return Child(_ask((work, *args)))


def _child(asked: Connection, work: Callable[..., Any], log: Path, *args: Any) -> None:
    """Do the work with all output in a file; exit status 9 for an error, which the file names."""
    asked.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method("fork", force=True)  # for workers, as where a user starts it
    # The pool of threads was forked without its threads. torch makes another at the next call, and
    # ends the process where two threads call at once.
    torch.set_num_threads(torch.get_num_threads())
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        raw = (io.FileIO(number, "w", closefd=False) for number in (1, 2))
        sys.stdout, sys.stderr = (io.TextIOWrapper(one, write_through=True) for one in raw)
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
        try:
            work(*args)
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(9)
        except SystemExit as error:
            sys.stderr.flush()
            os._exit(error.code)


def python(
    code: str, *words: str, folder: Path, env: dict[str, str], strict: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a program in a child with an environment of its own, as `python -c code words` would, but
    with all libraries loaded; `folder` is where it begins. `strict` makes warnings errors."""
    with tempfile.TemporaryDirectory() as scratch:
        said = [Path(scratch) / name for name in ("out", "err")]
        child = started(code, *words, folder=folder, env=env, said=said, strict=strict)
        status = ended(child, 1800)
        return subprocess.CompletedProcess(words, status, *(path.read_text() for path in said))


def started(
    code: str,
    *words: str,
    folder: Path,
    env: dict[str, str],
    said: list[Path],
    strict: bool = False,
) -> Child:
    """Start such a program, with its output and errors in the two files `said`."""
    return start(_program, said[0], code, words, folder, env, said, strict)


def _program(
    code: str, words: Any, folder: Path, env: dict[str, str], said: list[Path], strict: bool = False
) -> None:
    atexit._clear()  # what the tests want done when they end
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    importlib.reload(constants)  # of huggingface_hub, which has read the environment
    hf_api.api.endpoint = constants.ENDPOINT
    if constants.HF_HUB_DISABLE_PROGRESS_BARS:
        disable_progress_bars()
    logging.getLogger().handlers.clear()
    if strict:
        warnings.resetwarnings()
        warnings.simplefilter("error")
        # The client's own upload uses a deprecated argument of its HTTP library.
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
    sys.argv = ["-c", *words]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
            raise SystemExit(1) from None
        raise
    finally:
        atexit._run_exitfuncs()


def together(count: int, out: Path, phases: Any, options: dict[str, Any]) -> list[int]:
    """Train in several processes at once and return their exit statuses."""
    port = free_port()
    own = [{**options, "processes": (rank, count, port)} for rank in range(count)]
    out.mkdir(parents=True, exist_ok=True)
    children = [
        start(train, out.parent / f"{out.name}-{rank}.log", out, phases, own[rank])
        for rank in range(count)
    ]
    return [ended(child) for child in children]


def ended(child: Any, seconds: float = 300) -> int:
    """Return a child's exit status once it has ended, -9 where it was killed."""
    child.join(seconds)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise AssertionError(f"a child did not end within {seconds} s")
    status: int = child.exitcode
    return status


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def join(rank: int, count: int, port: int) -> None:
    """Be one of several processes, as a launcher would have it."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= where | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}


def shard() -> None:
    """Have accelerate shard parameters (FSDP2) among CPU processes, where it would not."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
    real = AcceleratorState.__init__

    def begin(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        real(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begin


def kill_at(where: str, call: int) -> None:
    """Have this process killed at the n-th call of a function, named as module:function."""
    module, _, path = where.partition(":")
    owner: Any = sys.modules[module]
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, counted)


def _surround(options: dict[str, Any]) -> None:
    """Make the process what the options say of it, and take them out."""
    from hf_transfer.base import shards as shards_module

    if cache := options.pop("cache", None):
        os.environ["HF_TRANSFER_CACHE"] = cache
    mute, rank = options.pop("mute", ()), 0
    if not mute:
        shards_module.SHARD_BYTES = SHARD_BYTES
    if processes := options.pop("processes", None):
        join(*processes)
        rank = processes[0]
        if mute:
            _first_computes(processes)
        if rank in mute:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if patience := options.pop("patience", 0):
        from hf_transfer.base.processes import meet

        meet(patience)
    if (halting := options.pop("halting", ())) and halting[0] == rank:
        _halt(halting[1])
    if options.pop("shard", False) and processes:
        shard()
    kill, spared = options.pop("kill", None), options.pop("spared", ())
    if kill and rank not in spared:
        kill_at(*kill)


def _halt(seconds: float) -> None:
    """Have each batch of features take so much longer."""
    from hf_transfer.inputs import extraction

    real = extraction.crossing_values
    extraction.crossing_values = lambda *args: time.sleep(seconds) or real(*args)


def _first_computes(processes: Any) -> None:
    """Have no process but the first compute features, of which there is one shard each."""
    from hf_transfer.base import store
    from hf_transfer.inputs import features

    real, share = features.build_rows, processes[:2]
    features.build_rows = lambda *args, **own: real(*args, **{**own, "share": share})
    if share[0]:
        store.claim = lambda *args: None  # the first marks the entry, perhaps a moment later


class Reduced(TrainerCallback):
    """Counts the bytes that DistributedDataParallel reduces in each step, by phase."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}
        self.trainer: Any = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.steps[self.trainer.phase.name] = []
        self.trainer.model_wrapped.register_comm_hook(None, self._reduce)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.steps[self.trainer.phase.name].append(0)

    def _reduce(self, state, bucket):  # torch reads annotations, and not as strings
        if steps := self.steps[self.trainer.phase.name]:
            steps[-1] += bucket.buffer().nbytes
        return default_hooks.allreduce_hook(None, bucket)


class Shards(TrainerCallback):
    """Notes of each phase which modules are sharded on their own, and this process's share."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self.trainer: Any = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        model = self.trainer.model
        units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
        parts = [p.to_local() for p in model.parameters() if isinstance(p, DTensor)]
        numbers = sum(p.numel() for p in model.parameters())
        share = sum(part.numel() for part in parts) / numbers
        self.seen[self.trainer.phase.name] = {"units": units, "share": share}


def train(out: Path, phases: Any, options: dict[str, Any]) -> None:
    """Train small phases, resuming; write the end weights, the history, the metrics and the time.

    `options` are those of small.trainer and: backbone, kill = (where, call), spared = ranks that
    are not killed, processes = (rank, count, port), shard = whether several shard parameters, slow
    = seconds that each step takes, mute = ranks that cannot write files, images = how many to train
    on, cache = where features are kept, halting = (rank, seconds) for each batch of features that
    this rank computes, patience = seconds after which a process is lost, first = to evaluate before
    training, reduced = whether to count the bytes that each step reduces, explode = (limit, after)
    of small.Explode, publish = whether to save the model.
    """
    import small

    options, callbacks = dict(options), []
    backbone = options.pop("backbone", small.VIT)
    dropout = options.pop("dropout", 0.2)
    _surround(options)
    if images := options.pop("images", None):
        options["train_dataset"] = small.images(images)
    if slow := options.pop("slow", 0):

        class Slow(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                (out / "stepped").touch()
                time.sleep(slow)

        callbacks.append(Slow())
    if explode := options.pop("explode", ()):
        callbacks.append(small.Explode(*explode))
    publish = options.pop("publish", False)
    first, reduced, shards = options.pop("first", False), Reduced(), Shards()
    if options.pop("reduced", False):
        callbacks.append(reduced)
    callbacks.append(shards)
    out.mkdir(parents=True, exist_ok=True)
    trainer = small.trainer(
        out, phases, small.network(backbone, dropout=dropout), callbacks=callbacks, **options
    )
    reduced.trainer = shards.trainer = trainer
    (out / "begun").touch()
    if first:
        trainer.evaluate()
    trainer.train(resume_from_checkpoint=True)
    if publish:
        trainer.save_model(out / "model")
    if trainer.processes.main:
        logits = trainer.model.eval()(**small.Pixels(small.images(6), trainer.model)[:6]).logits
        result = {
            "history": [small.untimed(report.history) for report in trainer.reports],
            "metrics": [report.metrics for report in trainer.reports],
            "checks": [report.checks for report in trainer.reports],
            "features": [report.features for report in trainer.reports],
            "epochs": [report.epochs for report in trainer.reports],
            "rollbacks": [report.rollbacks for report in trainer.reports],
            "logits": logits.tolist(),
            "reduced": reduced.steps,
        }
        torch.save(small.state(trainer.model), out / "end.pt")
        (out / "seconds.json").write_text(json.dumps([r.seconds for r in trainer.reports]))
        (out / "shards.json").write_text(json.dumps(shards.seen))
        (out / "end.json").write_text(json.dumps(result))
    from hf_transfer.base.processes import leave

    del trainer
    leave()


def log(out):
    return "\n".join(path.read_text() for path in sorted(out.parent.glob(f"{out.name}-*.log")))


def results(out):
    return torch.load(out / "end.pt"), json.loads((out / "end.json").read_text())
