"""Equal conditions for all executors.

Memory: glibc returns large blocks to the system when they are freed, and every new one then costs a page
fault per page, more than the arithmetic. Two settings keep freed memory in the process, as a GPU's caching
allocator does, and one makes torch ask for huge pages, as the C++ operators do for their outputs. They hold
for eager, `torch.compile` and C++ alike.
"""

from __future__ import annotations

import ctypes
import os
import sys

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before torch allocates anything

import pytest
import torch

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt parameters
_RESERVE = 3 << 30  # bytes


def pytest_configure(config: pytest.Config) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, -1)  # never
        torch.ones(_RESERVE, dtype=torch.uint8)
    torch._dynamo.config.cache_size_limit = 64
