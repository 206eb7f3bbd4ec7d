"""Triton and CUDA on a GPU, in `make gpu-check`. Without one, the same tests run on the C++ operators if they can, and
some of them on Triton's under its interpreter, in fp64 (tests/kernels/test_interpreter.py)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import benchmarks.gpu  # noqa: F401  (finds finpercep.kernels in a tree that nobody installed)
from finpercep import ops

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ("cuda", "triton") if GPU else ("triton",) if INTERPRETED else ("cpp",)
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA device")
if INTERPRETED:
    from tests.kernels.interpreted.conftest import fast_interpreter  # noqa: F401


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", help='of tests/gpu: a share of the tests that were chosen, "2/4"')


@pytest.hookimpl(trylast=True)  # behind -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("part", None)
    if part is None:
        return
    first, step = map(int, part.split("/"))
    kept = items[first - 1 :: step]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    reason = ops.backends()["available"][request.param]
    if reason is not True:
        pytest.fail(f"{request.param}: {reason}") if GPU else pytest.skip(reason)
    return request.param


@pytest.fixture(autouse=True)
def device_works() -> Iterator[None]:
    """An error of a kernel ends the run at the test that launched it: behind it, every test would fail of it."""
    yield
    if GPU:
        try:
            torch.cuda.synchronize()
        except Exception as error:
            pytest.exit(f"a kernel broke the device: {error}", returncode=1)


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that an operator allocates starts as NaN: an element that no kernel writes shows.

    torch fills it in deterministic mode only, which for the rest should warn and not raise: not all that runs in here
    is ours.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
