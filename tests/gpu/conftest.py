"""What needs a CUDA device; skipped, with the reason, where there is none. `make gpu-check` runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from finpercep.ops import _backend

DEVICE = "cuda"
BACKENDS = ("triton", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    reason = _backend.unavailable_reason(request.param)
    if reason is not None:
        pytest.fail(f"{request.param}: {reason}")
    return request.param


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that an operator allocates starts as NaN: an element that no kernel writes shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
