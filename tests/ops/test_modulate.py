"""modulate: values by hand, the compiled backend against the reference, autograd, compile, errors."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from finpercep.ops import modulate, modulate_reference

OPTIONS = [
    {"gate": gate, "resample": resample, "pool": pool}
    for gate, resample, pool in itertools.product(
        ("degradation", "quality", "residual"), ("area", "bilinear"), (None, "mean")
    )
]
# (B, C, H, W), (h, w): divisible, odd, upsampling, one cell, wide rows, blocks of channels, no images
SHAPES = [
    ((2, 32, 16, 16), (4, 4)),
    ((2, 7, 13, 17), (3, 4)),
    ((1, 33, 5, 6), (7, 11)),
    ((1, 1030, 8, 8), (2, 2)),
    ((1, 5, 40, 2100), (3, 1)),
    ((1, 5, 3, 2100), (2, 150)),
    ((3, 4, 1, 1), (12, 12)),
    ((0, 4, 3, 3), (2, 2)),
]


def inputs(shape: tuple[int, ...], grid: tuple[int, int], dtype=torch.float32, map_dtype=None):
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, grid[0] * grid[1], channels, generator=generator, dtype=torch.float64)
    degradation = torch.rand(batch, 1, height, width, generator=generator, dtype=torch.float64)
    return (
        features.to(dtype).requires_grad_(),
        degradation.to(map_dtype or dtype).requires_grad_(),
    )


def run(function, features: Tensor, degradation: Tensor, grid, **options) -> list[Tensor]:
    """Output and both gradients, for a gradient that is not constant."""
    out = function(features, degradation, grid, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, (features, degradation), weight)]


def test_values_by_hand() -> None:
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    degradation = torch.tensor([[[[0.0, 0.5, 1.0, 1.0]]]])
    expected = {
        "degradation": [[0.25, 0.5], [3.0, 4.0]],
        "quality": [[0.75, 1.5], [0.0, 0.0]],
        "residual": [[1.25, 2.5], [6.0, 8.0]],
    }
    for gate, values in expected.items():
        assert modulate(features, degradation, (1, 2), gate=gate).tolist() == [values]
        pooled = modulate(features, degradation, (1, 2), gate=gate, pool="mean")
        torch.testing.assert_close(pooled, torch.tensor([values]).mean(1))


@pytest.mark.parametrize("shape_grid", [*SHAPES, ((1, 5, 4, 6), (2, 4)), ((1, 5, 5, 6), (2, 3))], ids=str)
def test_cells_of_a_compiled_graph_are_those_of_adaptive_pooling(shape_grid, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, grid = shape_grid
    features, degradation = inputs(shape, grid, torch.float64)
    expected = modulate_reference(features, degradation, grid)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(modulate_reference(features, degradation, grid), expected)


def test_features_decide_how_exact_it_is() -> None:
    features, degradation = inputs((2, 7, 13, 17), (3, 4), torch.float64, torch.float32)
    expected = modulate_reference(features, degradation.double(), (3, 4))
    assert torch.equal(modulate_reference(features, degradation, (3, 4)), expected)
    torch.testing.assert_close(modulate(features, degradation, (3, 4)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape_grid", SHAPES, ids=str)
def test_matches_reference(simd: str, poisoned: None, shape_grid) -> None:
    shape, grid = shape_grid
    for options in OPTIONS:
        for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-11)):
            tensors = inputs(shape, grid, dtype)
            ours = run(modulate, *tensors, grid, **options, backend="cpp")
            for value, expected in zip(ours, run(modulate_reference, *tensors, grid, **options), strict=True):
                assert value.stride() == expected.stride()
                torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("map_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(simd: str, dtype, map_dtype) -> None:
    """No further from fp64 than eager PyTorch is."""
    shape, grid = (2, 70, 33, 30), (8, 7)
    for options in OPTIONS:
        low = inputs(shape, grid, dtype, map_dtype)
        exact = [t.detach().double().requires_grad_() for t in low]
        truth = run(modulate_reference, *exact, grid, **options)
        eager = run(modulate_reference, *low, grid, **options)
        ours = run(modulate, *low, grid, **options, backend="cpp")
        for value, reference, target in zip(ours, eager, truth, strict=True):
            assert value.dtype == reference.dtype
            limit = (reference.double() - target).abs().max() * 1.1 + 1e-6
            assert (value.double() - target).abs().max() <= limit


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_gradcheck(cpp: str, options) -> None:
    tensors = inputs((2, 3, 7, 5), (3, 4), torch.float64)
    assert torch.autograd.gradcheck(lambda f, m: modulate(f, m, (3, 4), **options, backend=cpp), tensors)


def test_one_gradient_only(cpp: str) -> None:
    features, degradation = inputs((2, 5, 8, 8), (4, 4), torch.float64)
    both = run(modulate, features, degradation, (4, 4), backend=cpp)
    weight = torch.linspace(-1, 1, both[0].numel(), dtype=torch.float64).view(both[0].shape)
    (only,) = torch.autograd.grad(modulate(features, degradation.detach(), (4, 4)), features, weight)
    torch.testing.assert_close(only, both[1], rtol=0, atol=0)
    (only,) = torch.autograd.grad(modulate(features.detach(), degradation, (4, 4)), degradation, weight)
    torch.testing.assert_close(only, both[2], rtol=0, atol=0)


def test_views_and_unaligned(simd: str) -> None:
    generator = torch.Generator().manual_seed(1)
    storage = torch.randn(1 + 2 * 12 * 9, generator=generator)[1:].view(2, 12, 9)
    maps = torch.rand(2, 9, 8, 3, generator=generator).permute(0, 3, 1, 2)[:, 1:2, ::2]
    for features in (storage, storage[..., ::2], storage.transpose(1, 2).contiguous().transpose(1, 2)):
        for pool in (None, "mean"):
            ours = modulate(features, maps, (3, 4), pool=pool, backend="cpp")
            torch.testing.assert_close(ours, modulate_reference(features, maps, (3, 4), pool=pool))


def test_large_outputs_are_streamed_right(simd: str, poisoned: None) -> None:
    """Above 4 MiB the stores bypass the cache: odd rows give every alignment."""
    for dtype in (torch.float32, torch.bfloat16):
        features, degradation = inputs((1, 1027, 64, 64), (33, 32), dtype)
        ours = run(modulate, features, degradation, (33, 32), backend="cpp")
        expected = run(modulate_reference, features, degradation, (33, 32))
        for value, reference in zip(ours, expected, strict=True):
            tolerance = 1e-4 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(value, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("pool", [None, "mean"])
def test_opcheck(cpp: str, pool) -> None:
    features, degradation = inputs((2, 3, 7, 5), (3, 4))
    arguments = (features, degradation, 3, 4, 0, 0, pool == "mean")
    torch.library.opcheck(torch.ops.finpercep.modulate.default, arguments)
    out, d = torch.ops.finpercep.modulate(*arguments)
    torch.library.opcheck(
        torch.ops.finpercep.modulate_backward.default,
        (out.detach(), features.detach(), degradation.detach(), d.detach(), *arguments[2:], True, True),
    )


@pytest.mark.parametrize("pool", [None, "mean"])
def test_compile_and_export(cpp: str, pool) -> None:
    def scaled(features: Tensor, degradation: Tensor, grid: tuple[int, int]) -> Tensor:
        return 2 * modulate(features, degradation, grid, pool=pool, backend=cpp).relu()

    features, degradation = inputs((2, 5, 8, 8), (4, 2))
    compiled = torch.compile(scaled, fullgraph=True)
    for ours, eager in zip(
        run(compiled, features, degradation, (4, 2)), run(scaled, features, degradation, (4, 2)), strict=True
    ):
        torch.testing.assert_close(ours, eager)

    class Module(torch.nn.Module):
        def forward(self, features: Tensor, degradation: Tensor) -> Tensor:
            return scaled(features, degradation, (4, 2))

    exported = torch.export.export(Module(), (features, degradation)).module()
    torch.testing.assert_close(exported(features, degradation), scaled(features, degradation, (4, 2)))


def test_one_compilation_serves_all_sizes(cpp: str) -> None:
    """A size in the schema that were a plain int would be a constant of the graph, and each new one a compilation."""
    counter = CompileCounter()

    def halved(features: Tensor, degradation: Tensor) -> Tensor:
        return modulate(features, degradation, (degradation.shape[2] // 2, degradation.shape[3] // 2), backend=cpp)

    compiled = torch.compile(halved, backend=counter, dynamic=True)
    for h, w in ((4, 6), (5, 3), (7, 8), (2, 9), (6, 6)):
        features, degradation = (t.detach() for t in inputs((2, 3, 2 * h, 2 * w), (h, w)))
        torch.testing.assert_close(compiled(features, degradation), halved(features, degradation))
    assert counter.frame_count == 1


def test_errors_name_the_argument() -> None:
    features, degradation = (t.detach() for t in inputs((2, 3, 8, 8), (2, 2)))
    cases = [
        (ValueError, "grid", (features, degradation, (3, 2)), {}),
        (ValueError, "grid", (features, degradation, (-2, -2)), {}),
        (ValueError, "degradation", (features, degradation[:, :, :0], (2, 2)), {}),
        (ValueError, "features", (features[0], degradation, (2, 2)), {}),
        (ValueError, "degradation", (features, degradation[:, 0], (2, 2)), {}),
        (ValueError, "degradation", (features, degradation[:1], (2, 2)), {}),
        (TypeError, "degradation", (features, degradation.int(), (2, 2)), {}),
        (TypeError, "features", (features.to(torch.complex64), degradation, (2, 2)), {}),
        (ValueError, "gate", (features, degradation, (2, 2)), {"gate": "both"}),
        (ValueError, "resample", (features, degradation, (2, 2)), {"resample": "cubic"}),
        (ValueError, "pool", (features, degradation, (2, 2)), {"pool": "max"}),
        (ValueError, "degradation", (features, degradation.to("meta"), (2, 2)), {}),
    ]
    for error, start, arguments, options in cases:
        with pytest.raises(error, match=f"^{start}: expected") as caught:
            modulate(*arguments, **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversions_of_every_value(simd: str, dtype) -> None:
    """All 65536 numbers: read exactly, and rounded to nearest even on the way out, bit for bit as PyTorch does."""
    values = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 256, 256)
    for weight in (1.0, 1 / 3):
        degradation = torch.full((1, 1, 16, 16), weight)
        ours = modulate(values, degradation, (16, 16), backend="cpp")
        expected = modulate_reference(values, degradation, (16, 16))
        assert torch.equal(ours.isnan(), expected.isnan())
        number = ~expected.isnan()
        assert torch.equal(ours.view(torch.int16)[number], expected.view(torch.int16)[number])


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_small_features_are_fused_inside_a_compiled_graph(
    cpp: str, monkeypatch: pytest.MonkeyPatch, small: bool, gradient: bool
) -> None:
    name = "FUSED_BYTES_WITH_GRADIENT" if gradient else "FUSED_BYTES"
    monkeypatch.setattr(
        sys.modules["finpercep.ops.modulate"], name, 2 * 4 * 8 * 4 + small
    )  # the features' bytes, and one more
    features, degradation = torch.rand(2, 4, 8, requires_grad=gradient), torch.rand(2, 1, 4, 4)
    called: list[str] = []

    def look(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(modulate, backend=look, fullgraph=True)
    torch.testing.assert_close(compiled(features, degradation, (2, 2)), modulate(features, degradation, (2, 2)))
    assert called
    assert any("finpercep" in target for target in called) != small
    called.clear()
    compiled(features, degradation, (2, 2), backend="cpp")
    assert any("finpercep" in target for target in called)
