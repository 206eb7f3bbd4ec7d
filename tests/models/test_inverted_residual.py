"""Inverted residual blocks by the C++ kernel against PyTorch's convolutions, at every SIMD level, outputs poisoned."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from finpercep.models.inverted_residual import InvertedResidual
from finpercep.ops import _backend, has_cpp
from tests.ops.conftest import cpp, poisoned, simd  # noqa: F401

Calls = list[tuple[int, ...]]


@pytest.fixture
def built(cpp: str) -> None:  # noqa: F811
    if not has_cpp("inverted_residual"):
        pytest.skip("the compiled extension is older than these sources")


@pytest.fixture
def calls(built: None, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The shapes that the operator is called with."""
    seen: Calls = []
    operator = torch.ops.finpercep.inverted_residual

    def count(x: Tensor, *rest: object) -> Tensor:
        seen.append(tuple(x.shape))
        result: Tensor = operator(x, *rest)
        return result

    monkeypatch.setattr(torch.ops.finpercep, "inverted_residual", count)
    return seen


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, expansion: int = 6) -> InvertedResidual:
    """Activations on both sides of 0 and of 6, and biases that count."""
    generator = torch.Generator().manual_seed(inputs + 31 * outputs + 7 * kernel + stride)
    made = InvertedResidual(inputs, outputs, kernel, stride, expansion)
    with torch.no_grad():
        for layer in (made.expand, made.filter, made.project):
            if layer is not None:
                fan = layer.weight[0].numel()
                layer.weight.normal_(0, 3 * fan**-0.5, generator=generator)
                assert layer.bias is not None
                layer.bias.normal_(0, 1, generator=generator)
    return made.to(memory_format=torch.channels_last)


def pixels(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


def plain(made: InvertedResidual, x: Tensor) -> Tensor:
    """The definition: what runs where a gradient is due."""
    with torch.enable_grad():
        return made(x.detach().requires_grad_()).detach()


def check(made: InvertedResidual, x: Tensor) -> Tensor:
    """The kernel's result, which is about as near to the exact one as the definition's in float32 is."""
    with torch.no_grad():
        got = made(x)
    exact = copy.deepcopy(made).double()(x.double()).detach()
    assert got.shape == exact.shape
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    own = (plain(made, x) - exact).abs().max().item()
    assert (got - exact).abs().max().item() <= 4 * own + 1e-6
    return got


SHAPES = [(1, 2, 2), (2, 7, 9), (1, 16, 16), (3, 33, 20), (1, 12, 131)]


@pytest.mark.usefixtures("simd", "poisoned", "built")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("expansion", [1, 6])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (24, 40), (20, 20), (5, 3)])
def test_values(calls: Calls, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
    """Odd sides, channels that are no multiple of a panel, with and without the input added."""
    made = block(inputs, outputs, kernel, stride, expansion)
    assert made.skip is (stride == 1 and inputs == outputs)
    for batch, height, width in SHAPES:
        check(made, pixels(batch, inputs, height, width))
    assert len(calls) == len(SHAPES)


@pytest.mark.usefixtures("simd", "poisoned", "built")
@pytest.mark.parametrize("stride", [1, 2])
def test_wide_images(calls: Calls, stride: int) -> None:
    """Columns are divided: the widths that need it, and a last part that is shorter."""
    made = block(48, 48, 5, stride)
    for width in (127, 200, 259):
        check(made, pixels(1, 48, 6, width))
    assert len(calls) == 3


@pytest.mark.usefixtures("simd", "poisoned", "built")
def test_one_pixel(calls: Calls) -> None:
    for kernel in (3, 5):
        check(block(16, 16, kernel), pixels(1, 16, 1, 1))
        check(block(16, 24, kernel), pixels(2, 16, 1, 5))
    check(block(16, 24, 5, 2), pixels(1, 16, 2, 3))
    assert len(calls) == 5


@pytest.mark.usefixtures("simd", "poisoned", "built")
def test_views(calls: Calls) -> None:
    made, whole = block(16, 24), pixels(2, 40, 20, 22)
    views = [whole[:, 5:21], whole[:, :16, 1:, ::2], whole[:, :16].contiguous(), whole[:1, :16].expand(3, -1, -1, -1)]
    for x in [*views, whole[:, :16].transpose(2, 3)]:
        check(made, x)
    weight = torch.randn(24, 192)[:, ::2]
    made.project.weight = nn.Parameter(weight[..., None, None])
    check(made, whole[:, :16])
    assert len(calls) == 6


@pytest.mark.usefixtures("simd", "poisoned", "built")
def test_no_batch() -> None:
    with torch.no_grad():
        assert block(16, 24, 3, 2)(torch.zeros(0, 16, 8, 8)).shape == (0, 24, 4, 4)


@pytest.mark.usefixtures("simd", "poisoned", "built")
@pytest.mark.parametrize("expansion", [1, 6])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(bad: float, expansion: int) -> None:
    """Whatever they make of a result by the definition they make here, and only there."""
    made, x = block(20, 24, 3, 1, expansion), pixels(2, 20, 12, 70)
    with torch.no_grad():
        clean = made(x)
        x[0, 3, 5, 33] = bad
        got = made(x)
    expected = plain(made, x)
    assert torch.equal(got.isnan(), expected.isnan())
    assert (got != clean).any()
    assert torch.allclose(got, expected, atol=1e-4, equal_nan=True)
    assert torch.equal(got[1], clean[1])


@pytest.mark.usefixtures("simd", "built")
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_the_same_bits(kernel: int, stride: int) -> None:
    """With any number of threads, alone and in a batch."""
    made, x = block(16, 16, kernel, stride), pixels(3, 16, 65, 70)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            with torch.no_grad():
                results += [made(x), torch.cat([made(image[None]) for image in x])]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.usefixtures("built")
def test_gradients_are_the_definitions(calls: Calls) -> None:
    made, x = block(16, 16), pixels(1, 16, 6, 7)
    made(x).sum().backward()
    exact = copy.deepcopy(made).double()
    exact.zero_grad()
    exact(x.double()).sum().backward()
    for own, other in zip(made.parameters(), exact.parameters(), strict=True):
        assert own.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(own.grad.double(), other.grad, rtol=1e-4, atol=1e-4)
    made.requires_grad_(False)
    image = x.clone().requires_grad_()
    made(image).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0
    assert calls == []
    assert not made(x).requires_grad  # frozen, and no gradient asked for
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.usefixtures("built")
@torch.no_grad()
def test_where_the_definition_runs(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = block(16, 16), pixels(2, 16, 6, 7)
    expected = plain(made, x)
    assert copy.deepcopy(made).double()(x.double()).dtype == torch.float64
    assert copy.deepcopy(made).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert copy.deepcopy(made).to("meta")(x.to("meta")).shape == x.shape
    with torch.autocast("cpu", torch.bfloat16):
        assert block(16, 24)(x).dtype == torch.bfloat16
    torch.testing.assert_close(torch.func.vmap(made)(x[None])[0], expected)
    _, slope = torch.func.jvp(made, (x,), (torch.ones_like(x),))
    assert slope.abs().max() > 0
    torch.testing.assert_close(torch.jit.trace(made, x, check_trace=False)(x), expected)
    torch.testing.assert_close(made(x[0]), expected[0])  # without a batch
    with pytest.raises(RuntimeError):
        block(16, 16, 3, 2)(x[:, :, :1])  # nothing is left
    assert calls == []
    made(x)
    assert calls == [(2, 6, 7, 16)]
    seen: list[Tensor] = []
    handle = made.filter.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    made(x)
    assert [tuple(s.shape) for s in seen] == [(2, 96, 6, 7)]
    handle.remove()
    with monkeypatch.context() as patch:
        patch.setattr(_backend, "_extension", None)
        assert torch.equal(made(x), expected)
    assert len(calls) == 1


@pytest.mark.usefixtures("built")
def test_what_is_exported_needs_no_operator_of_ours(calls: Calls) -> None:
    made, x = block(16, 16).requires_grad_(False), pixels(2, 16, 6, 7)
    program = torch.export.export(made, (x,))
    assert "finpercep" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), plain(made, x))
    assert calls == []


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("expansion", [1, 6])
@pytest.mark.parametrize("stride", [1, 2])
def test_counted_as_the_definition(expansion: int, stride: int) -> None:
    """Operations, for profiles."""
    made, x = block(16, 24, 5, stride, expansion).requires_grad_(False), pixels(2, 16, 6, 8)
    counts = []
    for given in (x, x.clone().requires_grad_()):
        with FlopCounterMode(display=False) as counter:
            made(given)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
