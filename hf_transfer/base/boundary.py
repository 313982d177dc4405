"""The boundary to what others wrote: any failure to read it is one line, free of secrets.

Files, rows, configurations and reports that come from elsewhere can fail in any way at all, so a
list of exceptions made by hand is never complete.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hf_transfer.base.errors import UserError

LONGEST = 200  # characters of another library's reason that are worth repeating
TRACEBACK = "HF_TRANSFER_TRACEBACK"  # set to 1, errors come with their traceback
_TOKENS = re.compile(  # one has capitals or digits, a name such as hf_transfer_torchvision has none
    r"hf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|(?i:(?<=bearer )|(?<=authorization: ))[^\s'\",;]+"
)
HIDDEN = "[hidden]"


@contextmanager
def untrusted(
    what: str, remedy: str = "", kind: type[UserError] = UserError, verb: str = "read"
) -> Iterator[None]:
    """Turn any failure within into a `kind`: "cannot {verb} {what}: {why}; {remedy}", one line.

    Memory that runs out and recursion without end are failures like others. What is a UserError
    already passes unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any class: that is the point of this boundary
        raise kind(f"cannot {verb} {what}: {said(error)}{remedy and f'; {remedy}'}") from error


def said(error: BaseException) -> str:
    """Return an error's own words in one line, without secrets, cut where they grow long."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    words = (isinstance(error, OSError) and error.strerror) or str(error)
    text = printable(redacted(" ".join(words.split()))) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def redacted(text: str) -> str:
    """Return a text without tokens and passwords: those by their form, and the user's own."""
    for secret in _own_secrets():
        for part in (secret, *secret.split()):  # a token with a line break in it, too
            if len(part) >= 8:
                text = text.replace(part, HIDDEN)
    return _TOKENS.sub(HIDDEN, text)


def _own_secrets() -> Iterator[str]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        yield os.environ.get(name, "")
    hub = sys.modules.get("huggingface_hub")
    if hub is not None:  # the token that was stored by a login
        with suppress(Exception):
            yield hub.get_token() or ""


def printable(text: str) -> str:
    """Return a text whose control characters, terminal escapes among them, are shown as escapes.

    Letters of all scripts stay. What UTF-8 cannot hold, of file names, becomes an escape, too.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else _escape(c)
        for c in text
    )


def as_text(name: str) -> str:
    """Return a file's name as UTF-8 can hold it: its bytes that are no text become escapes."""
    return name.encode(errors="backslashreplace").decode()


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name, by Python's surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
