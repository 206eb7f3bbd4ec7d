"""Triton and CUDA on a GPU (the C++ operators without one): values, gradients, dispatch, capture."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.gpu.conftest import DEVICE, needs_gpu, poisoned
from tests.gpu.families import CALLS, SMALL, Call

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def results(call: Call, operator, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, then the gradients of all that are differentiable, for gradients that are not constant."""
    leaves = [t.detach().requires_grad_(i in call.differentiable) for i, t in enumerate(inputs)]
    outputs = call.run(operator, *leaves)
    roots = [out for out in outputs if out.requires_grad]
    if not roots:
        return outputs
    upstream = [torch.linspace(-1, 1, r.numel(), device=r.device).view(r.shape).to(r.dtype) for r in roots]
    return outputs + list(torch.autograd.grad(roots, [t for t in leaves if t.requires_grad], upstream))


def assert_near(ours: list[Tensor], truth: list[Tensor], tolerance: float) -> None:
    for value, expected in zip(ours, truth, strict=True):
        assert value.shape == expected.shape
        size = expected[expected.isfinite()].abs().max().item() if expected.isfinite().any() else 0.0
        torch.testing.assert_close(
            value.double(), expected.double(), rtol=tolerance, atol=tolerance * max(size, 1e-3), equal_nan=True
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_against_fp64(backend: str, call: Call, dtype: torch.dtype) -> None:
    print("seed", torch.seed())  # fresh numbers in every run
    inputs = [t.to(DEVICE, dtype) for t in call.inputs()]  # the rounded numbers, for both
    truth = results(call, call.definition, [t.double() for t in inputs])
    with poisoned():
        ours = results(call, partial(call.operator, backend=backend), inputs)
    if dtype in (torch.float64, torch.float32):
        assert_near(ours, truth, TOLERANCE[dtype])
        return
    eager = results(call, call.definition, inputs)
    for value, other, expected in zip(ours, eager, truth, strict=True):
        finite = expected.isfinite()
        assert torch.equal(value.isfinite(), finite)
        error, allowed = ((x.double() - expected)[finite].abs() for x in (value, other))
        scale = expected[finite].abs().max().item() if finite.any() else 0.0
        assert error.max() <= 1.2 * allowed.max() + 0.02 * TOLERANCE[dtype] * scale + 1e-6


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_running_twice_gives_the_same_bits(backend: str, call: Call) -> None:
    inputs = [t.to(DEVICE, torch.float32) for t in call.inputs()]
    first, second = (results(call, partial(call.operator, backend=backend), inputs) for _ in range(2))
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("call", SMALL, ids=str)
def test_views(backend: str, call: Call) -> None:
    """Not contiguous, and not aligned."""
    inputs = [t.to(DEVICE, torch.float32) for t in call.inputs()]
    views = [torch.stack([t, t], -1)[..., 0] for t in inputs]
    shifted = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in inputs]
    expected = results(call, partial(call.operator, backend=backend), inputs)
    for other in (views, shifted):
        assert_near(results(call, partial(call.operator, backend=backend), other), expected, 1e-5)


@pytest.mark.parametrize("call", [c for c in SMALL if c.differentiable], ids=str)
def test_gradcheck(backend: str, call: Call) -> None:
    inputs = [t.to(DEVICE).requires_grad_(i in call.differentiable) for i, t in enumerate(call.inputs())]

    def function(*tensors: Tensor) -> list[Tensor]:
        outputs = call.run(partial(call.operator, backend=backend), *tensors)
        return [out for i, out in enumerate(outputs) if out.requires_grad and i not in call.partial]

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True, atol=1e-5)


class Recorder(TorchDispatchMode):
    """The operators of this package that run, forward and backward, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "finpercep":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("call", SMALL, ids=str)
def test_opcheck(backend: str, call: Call) -> None:
    inputs = [t.to(DEVICE, torch.float32) for t in call.inputs()]
    with Recorder() as recorder:
        results(call, partial(call.operator, backend=backend), inputs)
    assert len(recorder.calls) == (2 if call.differentiable else 1)
    for func, args in recorder.calls:
        torch.library.opcheck(func, [a.detach() if isinstance(a, Tensor) else a for a in args])


@needs_gpu
@pytest.mark.parametrize("call", SMALL, ids=str)
def test_compiles_without_a_break(backend: str, call: Call) -> None:
    inputs = [t.to(DEVICE, torch.float32) for t in call.inputs()]
    function = partial(call.run, partial(call.operator, backend=backend))
    compiled = torch.compile(function, fullgraph=True)
    assert_near(compiled(*inputs), function(*inputs), 1e-6)
    torch._dynamo.reset()


@needs_gpu
@pytest.mark.parametrize("call", SMALL, ids=str)
def test_graph_capture(backend: str, call: Call) -> None:
    """A captured call replays on new numbers: nothing in it waits for the host."""
    inputs = [t.to(DEVICE, torch.float32) for t in call.inputs()]
    function = partial(call.run, partial(call.operator, backend=backend))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles and allocates
        function(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*inputs)
    for tensor, fresh in zip(inputs, call.inputs(), strict=True):
        tensor.copy_(fresh)
    graph.replay()
    assert_near(outputs, function(*inputs), 1e-6)


@needs_gpu
@pytest.mark.parametrize("call", SMALL, ids=str)
def test_runs_on_the_current_stream(backend: str, call: Call) -> None:
    inputs = [t.to(DEVICE, torch.float32) for t in call.inputs()]
    function = partial(call.run, partial(call.operator, backend=backend))
    expected = function(*inputs)
    late = [torch.full_like(t, torch.nan) for t in inputs]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for tensor, value in zip(late, inputs, strict=True):
            tensor.copy_(value)
        outputs = function(*late)  # on another stream it would read NaN
    stream.synchronize()
    assert_near(outputs, expected, 1e-6)


@pytest.mark.parametrize("call", SMALL, ids=str)
def test_small_calls_for_the_sanitizer(backend: str, call: Call) -> None:
    """What `compute-sanitizer` watches: forward and backward of every operator, odd sizes."""
    # Converted on the host: the checker takes long for every kernel that is loaded.
    inputs = [t.to(torch.float32).to(DEVICE) for t in call.inputs()]
    for value in results(call, partial(call.operator, backend=backend), inputs):
        assert value.isfinite().all()
