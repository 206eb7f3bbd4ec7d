"""Fixtures of the operator tests: the compiled backend, each SIMD level, outputs poisoned with NaN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from finpercep.ops import _backend

LEVELS = ("baseline", "avx2", "avx512")


@pytest.fixture
def cpp() -> str:
    """The name of the compiled backend; skips, saying why, where it was not built."""
    reason = _backend.unavailable_reason("cpp")
    if reason is not None:
        pytest.skip(reason)
    return "cpp"


@pytest.fixture(params=LEVELS)
def simd(request: pytest.FixtureRequest, cpp: str) -> Iterator[str]:
    """Every SIMD level in turn; skips those that this machine or build lacks."""
    from finpercep import _C

    info = _C.build_info()
    if request.param not in info["simd_usable"]:
        pytest.skip(f"SIMD level {request.param} is not compiled or this CPU lacks it")
    _C.set_simd_level(request.param)
    yield request.param
    _C.set_simd_level(info["simd"])


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that an operator allocates starts as NaN: an element that no kernel writes shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]
