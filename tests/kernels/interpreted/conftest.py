"""Everything here runs Triton's interpreter, so the process must have started with TRITON_INTERPRET=1."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter


class _NothingToRestore:
    def restore(self) -> None:
        pass


@pytest.fixture(scope="session", autouse=True)
def fast_interpreter() -> None:
    """The interpreter replaces the language's functions at each call of each helper; here once and for all."""
    interpreter._patch_lang(types.FunctionType((lambda: None).__code__, {"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda function: _NothingToRestore()
    # Before Triton 3.9 this trips over numpy 2.4, which takes no more one-element arrays for numbers.
    tl.tensor.__index__ = lambda self: int(self.handle.data.squeeze())


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that a launcher allocates starts as NaN: an element that no kernel writes shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def values(result: Any) -> list[torch.Tensor]:
    """The tensors of a result, however nested."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [t for part in result if part is not None for t in values(part)] if isinstance(result, tuple) else []
