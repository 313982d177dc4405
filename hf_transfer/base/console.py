"""The edges of the command line: arguments, what is printed, and how a command that fails ends."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from hf_transfer.base import launch
from hf_transfer.base.boundary import TRACEBACK, printable, redacted, said
from hf_transfer.base.errors import UserError
from hf_transfer.base.nearest import nearest

WIDE = 160  # columns of what is no terminal
MISTAKE, DEFECT, INTERRUPTED, STOPPED = 2, 1, 130, 143  # exit statuses
NO_NUMBER = re.compile(r"invalid (float|int) value: ('.*')")
NO_VALUE = re.compile(r"argument (--[\w-]+): expected one argument")
CHOICE = re.compile(r"argument ([^:]*): invalid choice: '(.*?)' \(choose from (.*)\)")
PROGRAM = "hf-transfer"


# --- arguments -------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, with the nearest known word; `habits` are the
    commands that words of other tools stand for, and `elsewhere` options that only other commands
    have, with what to do instead."""

    habits: Mapping[str, str] = MappingProxyType({})
    elsewhere: Mapping[str, str] = MappingProxyType({})

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit."""
        message = NO_NUMBER.sub(_no_number, message)
        message = NO_VALUE.sub(
            r"argument \1: no value; write \1=VALUE for one that begins with -", message
        )
        choice = CHOICE.match(message)
        if choice:
            argument, word = choice[1], choice[2]
            known = [each.strip(" '\"") for each in choice[3].split(",")]
            near = nearest(word, known) or f"; choose {' or '.join(known)}"
            what = "unknown command" if argument == "COMMAND" else f"argument {argument}: no choice"
            if argument == "COMMAND" and (meant := self.habits.get(word.lower())):
                near = f"; use {self.prog} {meant}"
            message = f"{what} {word!r}{near}"
        warn(f"error: {launch.speaker()}{message}; see {self.prog} --help")
        raise SystemExit(MISTAKE)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print the help or the version; argparse does not say that it could not."""
        try:
            print(message, end="", file=file, flush=True)
        except OSError as error:
            warn(f"error: {_lines(error)[0]}")
            raise SystemExit(MISTAKE) from None

    def argument(self, name: str, metavar: str | None, text: str, **options: Any) -> None:
        """Add an argument: name, what stands for its value, what it means."""
        self.add_argument(name, metavar=metavar, help=text, **options)

    def path(self, name: str, metavar: str, text: str, **options: Any) -> None:
        """Add an argument that is a path, or may be one: `~` is the home folder."""
        self.argument(name, metavar, text, type=place, **options)

    def flag(self, name: str, text: str) -> None:
        """Add an argument without a value."""
        self.add_argument(name, action="store_true", help=text)

    def either(self, name: str, text: str) -> None:
        """Add an argument without a value that can be negated (--no-…); None where neither is."""
        self.add_argument(name, action=argparse.BooleanOptionalAction, help=text)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Return the arguments of a command, or exit for what is unknown."""
        args, unknown = self.parse_known_args(words)
        command: Parser = args.parser
        for name in (word.partition("=")[0] for word in words):
            if name in command.elsewhere:
                command.error(f"{name} is not for this command: {command.elsewhere[name]}")
        if unknown:
            name = unknown[0].partition("=")[0]
            options = command._option_string_actions
            near = nearest(name, options) if name.startswith("-") else ""
            if "=" in unknown[0] and not near and "--set" in options:  # each needs its own
                near = f"; write --set {unknown[0]}"
            command.error(f"unknown argument {unknown[0]!r}{near}")
        return args


def place(text: str) -> str:
    """Return a path or name with `~` at its start as the home folder."""
    if not text.strip():  # as of a variable of the shell that is not set
        raise argparse.ArgumentTypeError("it is empty")
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"there is no home folder for {text!r}") from None


def count(text: str) -> int:
    """Return a number that counts something: 1 or more."""
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def whole(text: str) -> int:
    """Return a number that may be 0."""
    return 0 if text.strip("0") == "" and text else count(text)


def _no_number(found: re.Match[str]) -> str:
    return f"{found[2]} is not a {'whole ' * (found[1] == 'int')}number"


# --- output ----------------------------------------------------------------------------------


class Output:
    """A stream that drops what nobody reads any longer: a reader that leaves stops no command.

    What else keeps it from being written is an error that names it; without a name there is none.
    """

    def __init__(self, stream: Any, name: str | None) -> None:
        self.stream, self.name = stream, name
        if isinstance(stream, io.TextIOWrapper):  # which would end a run at a name it cannot print
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, as long as somebody reads. Raises OSError."""
        try:
            self.stream.write(text)
        except OSError as error:
            self._leave(error)
        return len(text)

    def flush(self) -> None:
        """Flush, as long as somebody reads. Raises OSError."""
        try:
            self.stream.flush()
        except OSError as error:
            self._leave(error)

    def _leave(self, error: OSError) -> None:
        """Discard what is in buffers and all that is written from now on."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
        if self.name and not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, self.name) from error


@contextmanager
def outputs() -> Iterator[None]:
    """Let standard output and error drop what nobody reads, until the command ends."""
    before = sys.stdout, sys.stderr
    sys.stdout = Output(sys.stdout or io.StringIO(), "standard output")
    sys.stderr = Output(sys.stderr or io.StringIO(), None)  # whom could one tell?
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def say(text: str, fold: bool = True) -> None:
    """Print lines, once for all processes; control characters in them are shown as escapes.

    On a terminal, lines that are too long are folded at blanks, unless `fold` is off.
    """
    if not launch.is_main():
        return
    lines = [printable(line) for line in text.split("\n")]
    if fold and sys.stdout.isatty():
        lines = [part for line in lines for part in _folded(line, width())]
    print("\n".join(lines), flush=True)


def _folded(line: str, columns: int) -> list[str]:
    if len(line) <= columns:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(
        line, max(columns, 20), subsequent_indent=indent, break_on_hyphens=False,
        break_long_words=False, drop_whitespace=True,
    )  # fmt: skip


def logs() -> None:
    """Send what is logged to standard error, without control characters."""

    class Lines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return "\n".join(map(printable, super().format(record).split("\n")))

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("huggingface_hub").propagate = False  # it prints its lines itself


def warn(line: str) -> None:
    """Print a line to standard error."""
    print(f"{PROGRAM}: {printable(line)}", file=sys.stderr)


def width() -> int:
    """Return how many columns the terminal has; WIDE where the output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE


# --- the end of a command --------------------------------------------------------------------


def finish(work: Callable[[], int | None], again: Callable[[], str | None]) -> int:
    """Do a command's work and return its exit status: 0, 1 for a defect, 2 for a user's mistake,
    130 interrupted.

    Each failure is a line; its traceback comes before it where HF_TRANSFER_TRACEBACK is 1. `again`
    returns the command that continues the work, if there is one.
    """
    try:
        status = int(work() or 0)
        sys.stdout.flush()
        return status
    except (UserError, OSError) as error:
        return _failed(error, _lines(error), MISTAKE)
    except KeyboardInterrupt:
        _interrupted("interrupted", again())
        return INTERRUPTED
    except SystemExit as error:
        if error.code and again():
            _interrupted("stopped", again())
        raise
    except Exception as error:  # nothing that a user does should lead here
        what = f"{type(error).__name__}: {said(error)}"
        return _failed(error, [f"{what}; this is a defect: set {TRACEBACK}=1 for more"], DEFECT)


@contextmanager
def interrupted_twice() -> Iterator[None]:
    """Let a second Ctrl-C end a command at once: after the first, threads of another library may
    wait for an answer that never comes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
        warn("stopping; press Ctrl-C again to end at once")
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is first:
            signal.signal(signal.SIGINT, before)


@contextmanager
def stopped_in_words() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, with a line that says how to continue."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _failed(error: Exception, lines: Sequence[str], status: int) -> int:
    who = launch.speaker()
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exception(error, file=sys.stderr)
    for line in lines:
        warn(f"error: {who}{line}")
    return status


def _interrupted(what: str, command: str | None) -> None:
    if launch.is_main():
        warn(what + (f"; to continue: {command}" if command else ""))


def _lines(error: Exception) -> list[str]:
    """Return what to print about a mistake: one line each, no empty ones."""
    if isinstance(error, UserError):
        return [redacted(line) for line in str(error).splitlines() if line.strip()]
    where = getattr(error, "filename", None)
    return [f"{where}: {said(error)}" if where else said(error)]


def resuming(words: Sequence[str]) -> str:
    """Return the command that resumes a run that was started with these arguments."""
    if launch.count() > 1:
        return "start it in the same way, with --resume"
    kept = [word for word in words if word != "--resume"]
    return shlex.join([PROGRAM, *kept, "--resume"])
