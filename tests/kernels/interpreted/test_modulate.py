"""modulate: the Triton kernels against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finpercep.kernels import _config
from finpercep.ops import modulate, modulate_reference

# (B, C, H, W), (h, w): divisible, odd, upsampling, one cell, wider than a block of the window, no images
SHAPES = [
    ((2, 16, 8, 12), (4, 4)),
    ((2, 7, 7, 9), (3, 4)),
    ((1, 33, 4, 3), (5, 4)),
    ((1, 3, 2, 1), (1, 3)),
    ((1, 5, 2, 83), (1, 2)),
    ((0, 4, 3, 3), (2, 2)),
]
VARIANTS = [
    {"gate": "degradation", "resample": "area", "pool": None},
    {"gate": "quality", "resample": "bilinear", "pool": "mean"},
    {"gate": "residual", "resample": "area", "pool": "mean"},
    {"gate": "quality", "resample": "bilinear", "pool": None},
]


def inputs(shape, grid, dtype=torch.float64, map_dtype=None) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    features = torch.randn(batch, grid[0] * grid[1], channels, generator=generator, dtype=torch.float64)
    degradation = torch.rand(batch, 1, height, width, generator=generator, dtype=torch.float64)
    return features.to(dtype).requires_grad_(), degradation.to(map_dtype or dtype).requires_grad_()


def run(function, features: Tensor, degradation: Tensor, grid, **options) -> list[Tensor]:
    """Output and both gradients, for a gradient that is not constant."""
    out = function(features, degradation, grid, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, (features, degradation), weight)]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("shape_grid", SHAPES, ids=str)
def test_matches_reference(poisoned: None, shape_grid, options) -> None:
    shape, grid = shape_grid
    tensors = inputs(shape, grid)
    ours = run(modulate, *tensors, grid, **options, backend="triton")
    for value, expected in zip(ours, run(modulate_reference, *tensors, grid, **options), strict=True):
        assert value.stride() == expected.stride()
        torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-11)


def test_every_token_block_and_the_second_stage_of_the_pool(poisoned: None, monkeypatch) -> None:
    """Small tiles, so that small inputs take several programs per image and several blocks of channels."""
    monkeypatch.setattr(_config, "MODULATE_TILE", 64)
    monkeypatch.setattr(_config, "MODULATE_CHANNELS", 1)
    monkeypatch.setattr(_config, "MODULATE_PROGRAMS", 10)
    tensors = inputs((2, 21, 6, 7), (5, 8))
    for options in VARIANTS[:3]:
        ours = run(modulate, *tensors, (5, 8), **options, backend="triton")
        for value, expected in zip(ours, run(modulate_reference, *tensors, (5, 8), **options), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("map_dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype, map_dtype) -> None:
    """No further from fp64 than eager PyTorch is."""
    shape, grid = (2, 19, 9, 10), (4, 3)
    for options in VARIANTS[:3]:
        low = inputs(shape, grid, dtype, map_dtype)
        truth = run(modulate_reference, *(t.detach().double().requires_grad_() for t in low), grid, **options)
        eager = run(modulate_reference, *low, grid, **options)
        ours = run(modulate, *low, grid, **options, backend="triton")
        for value, reference, target in zip(ours, eager, truth, strict=True):
            assert value.dtype == reference.dtype
            limit = (reference.double() - target).abs().max() * 1.1 + 1e-6
            assert (value.double() - target).abs().max() <= limit


def test_rounding_to_bfloat16_is_to_nearest_even() -> None:
    """Carries into the exponent, ties, infinities and NaN: bit for bit as PyTorch rounds.

    But for subnormals, which the interpreter itself converts wrongly.
    """
    patterns = torch.randint(0, 2**31 - 1, (1, 1, 4096), generator=torch.Generator().manual_seed(0))
    patterns[..., ::3] |= 0x7FFF
    patterns[..., 1::3] = (patterns[..., 1::3] & ~0xFFFF) | 0x8000
    maps = patterns.to(torch.int32).view(torch.float32).view(1, 1, 1, 4096)
    ours = modulate(torch.ones(1, 4096, 1, dtype=torch.bfloat16), maps, (1, 4096), backend="triton").flatten()
    expected = maps.bfloat16().flatten()
    assert torch.equal(ours.isnan(), expected.isnan())
    number = ~expected.isnan() & (maps.flatten().abs() >= torch.finfo(torch.float32).tiny)
    assert number.sum() > 4000
    assert torch.equal(ours.view(torch.int16)[number], expected.view(torch.int16)[number])


def test_one_gradient_only() -> None:
    features, degradation = inputs((2, 5, 8, 8), (4, 4))
    both = run(modulate, features, degradation, (4, 4), backend="triton")
    weight = torch.linspace(-1, 1, both[0].numel(), dtype=torch.float64).view(both[0].shape)
    out = modulate(features, degradation.detach(), (4, 4), backend="triton")
    torch.testing.assert_close(torch.autograd.grad(out, features, weight)[0], both[1], rtol=0, atol=0)
    out = modulate(features.detach(), degradation, (4, 4), backend="triton")
    torch.testing.assert_close(torch.autograd.grad(out, degradation, weight)[0], both[2], rtol=0, atol=0)


def test_views_and_unaligned() -> None:
    generator = torch.Generator().manual_seed(1)
    storage = torch.randn(1 + 2 * 12 * 9, generator=generator)[1:].view(2, 12, 9)
    maps = torch.rand(2, 9, 8, 3, generator=generator).permute(0, 3, 1, 2)[:, 1:2, ::2]
    for features in (storage, storage[..., ::2], storage.transpose(1, 2).contiguous().transpose(1, 2)):
        ours = modulate(features, maps, (3, 4), backend="triton")
        torch.testing.assert_close(ours, modulate_reference(features, maps, (3, 4)))


def test_nan_stays_where_it_is() -> None:
    features, degradation = (t.detach() for t in inputs((2, 5, 8, 8), (4, 4)))
    degradation[1, 0, 3, 4] = float("nan")  # in cell (1, 2)
    out = modulate(features, degradation, (4, 4), backend="triton")
    assert out[1, 6].isnan().all()
    assert out.isnan().sum() == 5
