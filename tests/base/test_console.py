"""The edges of the command line: what is printed, and how a command that fails ends."""

import os
import signal
import subprocess
import sys

import pytest

from hf_transfer.base.console import Output, finish, resuming, say
from hf_transfer.base.errors import UserError


def ends(work, again=lambda: None) -> int:
    def fails():
        raise work

    return finish(fails, again)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a\n\nb"), 2, "hf-transfer: error: a\nhf-transfer: error: b\n"),
        (UserError("token hf_abcdefGhijk4m"), 2, "hf-transfer: error: token [hidden]\n"),
        (UserError("\x1b[2Jred"), 2, "hf-transfer: error: \\x1b[2Jred\n"),
        (OSError(28, "No space left", "x/y"), 2, "hf-transfer: error: x/y: No space left\n"),
        (KeyboardInterrupt(), 130, "hf-transfer: interrupted\n"),
        (
            MemoryError(),
            1,
            "hf-transfer: error: MemoryError: it does not fit into memory; this is ",
        ),
        (RecursionError("x"), 1, "hf-transfer: error: RecursionError: it is nested too deeply; "),
    ],
)
def test_a_failure_is_a_line_and_a_status(error, status, line, capsys):
    assert ends(error) == status
    assert capsys.readouterr().err.startswith(line)


def test_what_can_be_continued_says_by_which_command(capsys, monkeypatch):
    again = resuming(["train", "my recipe.yaml", "--resume", "--out", "x"])
    assert ends(KeyboardInterrupt(), lambda: again) == 130
    told = "hf-transfer train 'my recipe.yaml' --out x --resume"
    assert capsys.readouterr().err == f"hf-transfer: interrupted; to continue: {told}\n"
    with pytest.raises(SystemExit):
        ends(SystemExit(143), lambda: again)
    assert capsys.readouterr().err == f"hf-transfer: stopped; to continue: {told}\n"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resuming(["train", "x"]) == "start it in the same way, with --resume"


def test_output_that_nobody_reads_is_dropped():
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        out = Output(stream, "standard output")
        os.close(reader)
        for _ in range(3):
            assert out.write("x" * 100_000) == 100_000
            out.flush()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a device that is full")
@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("words", ["recipes", "--help", "--version", "completion bash"])
def test_output_that_cannot_be_written_is_an_error_that_names_it(words, buffered):
    command = [sys.executable, "-m", "hf_transfer", *words.split()]
    env = {**os.environ, "PYTHONUNBUFFERED": buffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=env)
        assert done.stderr == "hf-transfer: error: standard output: No space left on device\n"
        assert done.returncode == 2
        assert subprocess.run(command, stdout=full, stderr=full, env=env).returncode == 2


def test_what_is_said_has_no_control_characters(capsys):
    say("a\tb\x1b[31m\nc")
    assert capsys.readouterr().out == "a\\x09b\\x1b[31m\nc\n"
    assert sys.stdout.isatty() is False


WAITS = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from hf_transfer.base.console import finish, interrupted_twice

def work():
    with interrupted_twice(), ThreadPoolExecutor(1) as pool:
        pool.submit(threading.Event().wait)
        print("begun", flush=True)

sys.exit(finish(work, lambda: None))
"""


def test_a_second_interrupt_ends_what_the_threads_of_a_library_hold_up():
    """An upload that is never answered: the client's pool of threads waits for it as it ends."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert "press Ctrl-C again to end at once" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (130, -signal.SIGINT)  # the latter where Python is ending
