"""Every operator of the table on Triton and CUDA, or what stands in for them: values, gradients, dispatch, capture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases import CALLS, SMALL_CALLS, Call, Work
from tests.gpu.conftest import DEVICE, INTERPRETED, needs_gpu, poisoned

DTYPES = (torch.float64,) if INTERPRETED else (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def work_of(call: Call, dtype: torch.dtype = torch.float32) -> Work:
    """Fresh numbers in every run, rounded to `dtype`; made in fp64 on the host, as the definition sees them."""
    print("seed", torch.seed())
    return call.make(torch.float64).to(DEVICE, dtype)


def results(work: Work, backend: str, inputs: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Outputs, then the gradients of all that are differentiable, for gradients that are not constant."""
    given = work.inputs if inputs is None else inputs
    leaves = [t.detach().requires_grad_(i in work.differentiable) for i, t in enumerate(given)]
    outputs = list(work.function(backend)(*leaves))
    roots = [out for out in outputs if out.requires_grad]
    if not roots:
        return outputs
    upstream = [torch.linspace(-1, 1, r.numel(), device=r.device).view(r.shape).to(r.dtype) for r in roots]
    return outputs + list(torch.autograd.grad(roots, [t for t in leaves if t.requires_grad], upstream))


def assert_near(ours: Sequence[Tensor], truth: Sequence[Tensor], tolerance: float) -> None:
    for value, expected in zip(ours, truth, strict=True):
        assert value.shape == expected.shape
        size = expected[expected.isfinite()].abs().max().item() if expected.isfinite().any() else 0.0
        torch.testing.assert_close(
            value.double(), expected.double(), rtol=tolerance, atol=tolerance * max(size, 1e-3), equal_nan=True
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_against_fp64(backend: str, call: Call, dtype: torch.dtype) -> None:
    work = work_of(call, dtype)
    truth = results(work.to(DEVICE, torch.float64), "reference")  # of the rounded numbers
    with poisoned():
        ours = results(work, backend)
    if dtype in (torch.float64, torch.float32):
        assert_near(ours, truth, TOLERANCE[dtype])
        return
    eager = results(work, "reference")
    for value, other, expected in zip(ours, eager, truth, strict=True):
        finite = expected.isfinite()
        assert torch.equal(value.isfinite(), finite)
        error, allowed = ((x.double() - expected)[finite].abs() for x in (value, other))
        scale = expected[finite].abs().max().item() if finite.any() else 0.0
        assert error.max() <= 1.2 * allowed.max() + 0.02 * TOLERANCE[dtype] * scale + 1e-6


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_running_twice_gives_the_same_bits(backend: str, call: Call) -> None:
    work = work_of(call)
    first, second = (results(work, backend) for _ in range(2))
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("call", SMALL_CALLS, ids=str)
def test_deterministic_mode(backend: str, call: Call) -> None:
    """Nothing of ours is refused by it, or warns."""
    work = work_of(call)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        ours = results(work, backend)
    finally:
        torch.use_deterministic_algorithms(before)
    assert_near(ours, results(work, backend), 0.0)


@pytest.mark.parametrize("call", SMALL_CALLS, ids=str)
def test_views(backend: str, call: Call) -> None:
    """Not contiguous, and not aligned."""
    work = work_of(call)
    views = [torch.stack([t, t], -1)[..., 0] for t in work.inputs]
    shifted = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in work.inputs]
    for other in (views, shifted):
        assert_near(results(work, backend, other), results(work, backend), 1e-5)


@pytest.mark.parametrize("call", SMALL_CALLS, ids=str)
def test_gradcheck(backend: str, call: Call) -> None:
    work = work_of(call, torch.float64)
    if not work.differentiable:
        pytest.skip(f"{work.operator} has no gradient")

    def function(*tensors: Tensor) -> list[Tensor]:
        outputs = work.function(backend)(*tensors)
        return [out for i, out in enumerate(outputs) if out.requires_grad and i not in work.detached]

    assert torch.autograd.gradcheck(function, work.leaves(True), fast_mode=True, atol=1e-5)


class Recorder(TorchDispatchMode):
    """The operators of this package that run, forward and backward, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "finpercep":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("call", SMALL_CALLS, ids=str)
def test_opcheck(backend: str, call: Call) -> None:
    work = work_of(call)
    with Recorder() as recorder:
        results(work, backend)
    assert len(recorder.calls) == (2 if work.differentiable else 1)
    for func, args in recorder.calls:
        torch.library.opcheck(func, tuple(a.detach() if isinstance(a, Tensor) else a for a in args))


@needs_gpu
@pytest.mark.parametrize("call", SMALL_CALLS, ids=str)
def test_compiles_without_a_break(backend: str, call: Call) -> None:
    work = work_of(call)
    function = work.function(backend)
    compiled = torch.compile(function, fullgraph=True)
    assert_near(compiled(*work.inputs), function(*work.inputs), 1e-6)
    torch._dynamo.reset()


@needs_gpu
@pytest.mark.parametrize("call", SMALL_CALLS, ids=str)
def test_graph_capture(backend: str, call: Call) -> None:
    """A captured call replays on new numbers: nothing in it waits for the host."""
    work = work_of(call)
    function, inputs = work.function(backend), work.inputs
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles and allocates
        function(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*inputs)
    for tensor, fresh in zip(inputs, work_of(call).inputs, strict=True):
        tensor.copy_(fresh)
    graph.replay()
    assert_near(outputs, function(*inputs), 1e-6)


@needs_gpu
@pytest.mark.parametrize("call", SMALL_CALLS, ids=str)
def test_runs_on_the_current_stream(backend: str, call: Call) -> None:
    work = work_of(call)
    function = work.function(backend)
    expected = function(*work.inputs)
    late = [torch.full_like(t, torch.nan) for t in work.inputs]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for tensor, value in zip(late, work.inputs, strict=True):
            tensor.copy_(value)
        outputs = function(*late)  # on another stream it would read NaN
    stream.synchronize()
    assert_near(outputs, expected, 1e-6)


@pytest.mark.parametrize("call", SMALL_CALLS, ids=str)
def test_small_calls_for_the_sanitizer(backend: str, call: Call) -> None:
    """What `compute-sanitizer` watches: forward and backward of every operator, odd sizes."""
    # Made and converted on the host: the checker takes long for every kernel that is loaded.
    for value in results(work_of(call), backend):
        assert value.isfinite().all()
