"""What the machine has and how its memory is kept: compiler, C library, allocator."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NO_COMPILER = "needs a C++ compiler (CXX, g++ or clang++); install one"
TRIM, MAPPED = -1, -3  # glibc's names in malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
USUAL = {TRIM: 64 * 2**20, MAPPED: 32 * 2**20}  # where glibc itself comes to with large blocks
KEPT = 2**30
CPU_INFO = Path("/proc/cpuinfo")
# Time of training in bfloat16 beside float32, by the best of these that a processor has: the median
# of five networks at 64 px, torch 2.14, on a Xeon held to these instructions. That of amx_bf16 was
# fitted to nine networks, on another processor.
BF16_TIMES = {"amx_bf16": 0.55, "avx512_bf16": 1.7, "avx512f": 3.0, "avx2": 10.0}

_lock, _keeping = threading.Lock(), 0  # blocks of `kept_memory` that are open


def compiler() -> str | None:
    """Return the C++ compiler that torch.compile would call on a CPU."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def bf16_time() -> float:
    """Return how long training takes in bfloat16 beside float32 on this processor, as far as Linux
    says; 1 where it does not."""
    try:
        told = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 1.0
    return next((time for flag, time in BF16_TIMES.items() if flag in told), 1.0)


def glibc() -> Any:
    """Return the C library where it is glibc, whose allocator can be told what to keep, or None."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") else None


@contextmanager
def nothing_to_collect() -> Iterator[None]:
    """Keep what is loaded out of garbage collections, until the block ends; for many trainings.

    Each phase's Trainer asks for several, and going through the modules in memory takes 0.3 s, as
    much as a third of a short phase. What was kept out before stays so.
    """
    before = gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not before:
            gc.unfreeze()


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep what a batch frees for the next one, until the outermost such block ends; on a CPU, with
    glibc.

    Large blocks would go back to the system, which hands them out again page by page, each filled
    with zeros: 17,000 pages in a step of ResNet-10-T (batch 32, 96 px), an eighth to a third of it,
    and nearly half of a forward pass of EfficientNet-Lite0 (batch 32, 224 px).
    """
    global _keeping
    library = glibc()
    if library is None:
        yield
        return
    with _lock:
        _keeping += 1
        if _keeping == 1:
            for name in USUAL:
                library.mallopt(name, KEPT)
    try:
        yield
    finally:
        with _lock:
            _keeping -= 1
            if not _keeping:
                for name, size in USUAL.items():
                    library.mallopt(name, size)
                trim()


def trim() -> None:
    """Return to the system what was freed, where glibc would keep it."""
    library = glibc()
    if library is not None:
        library.malloc_trim(0)
