"""Memory of the CPU that a process keeps, as PyTorch does on a GPU."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # glibc's names of what mallopt sets, in malloc.h
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """From now on this process keeps the memory that it frees, for its next tensors; True where that could be had.

    glibc maps large blocks one by one and gives them back when they are freed; each new tensor then costs a fault per
    page. Holds for the whole process, so that no part of the library but the
    commands calls it: call it once, before your own loop. What the process holds then stays at its peak.

    Returns:
        False, and nothing is changed, where the C library is not glibc, or where the environment sets this already
        (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_MAX_`, `GLIBC_TUNABLES=glibc.malloc...` and their like).
    """
    chosen = any(name in os.environ for name in _CHOSEN) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or chosen:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
