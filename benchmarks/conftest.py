"""Equal conditions for all executors.

Memory: glibc returns large blocks to the system when they are freed, and every new one then costs a page
fault per page, more than the arithmetic. Two settings keep freed memory in the process, as a GPU's caching
allocator does, and one makes torch ask for huge pages, as the C++ operators do for their outputs. They hold
for eager, `torch.compile` and C++ alike.
"""

from __future__ import annotations

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before torch allocates anything

import pytest
import torch

from finpercep.runs.memory import keep_freed_memory

_RESERVE = 3 << 30  # bytes


def pytest_configure(config: pytest.Config) -> None:
    if keep_freed_memory():
        torch.ones(_RESERVE, dtype=torch.uint8)
    torch._dynamo.config.cache_size_limit = 64
