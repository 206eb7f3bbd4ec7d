"""degradation_target: the Triton kernels against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finpercep.kernels import _config
from finpercep.ops import degradation_target, degradation_target_reference

NORMALIZE = ("none", "minmax", "percentile", "scale")
# B, H, W, C, h, w: odd, features finer than the image, one pixel, no images
SHAPES = [(2, 17, 23, 7, 3, 4), (1, 3, 4, 33, 4, 6), (1, 1, 1, 3, 1, 1), (0, 8, 8, 4, 2, 2)]


def inputs(shape, dtype=torch.float64, feature_dtype=None, features: bool = True) -> list[Tensor]:
    batch, height, width, channels, h, w = shape
    generator = torch.Generator().manual_seed(sum(shape))
    if dtype == torch.uint8:
        size = (batch, 3, height, width)
        tensors = [torch.randint(0, 256, size, generator=generator, dtype=dtype) for _ in range(2)]
    else:
        tensors = [torch.rand(batch, 3, height, width, generator=generator).to(dtype) for _ in range(2)]
    if features:
        for _ in range(2):
            tensors.append(torch.randn(batch, channels, h, w, generator=generator).to(feature_dtype or dtype))
    return [t.requires_grad_() if t.is_floating_point() else t for t in tensors]


def run(function, tensors: list[Tensor], **options) -> list[Tensor]:
    """Output and the gradients of all float inputs, for a gradient that is not constant."""
    out = function(*tensors, **options)
    wanted = [t for t in tensors if t.requires_grad]
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad(out, wanted, weight)]


def assert_near(ours: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Relative to the largest value of each tensor: gradients through a small range are large."""
    for value, reference in zip(ours, expected, strict=True):
        assert value.dtype == reference.dtype
        assert value.shape == reference.shape
        assert value.is_contiguous()
        size = max(1.0, reference.abs().max().item()) if reference.numel() else 1.0
        torch.testing.assert_close(value, reference, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(poisoned: None, shape, normalize: str) -> None:
    options = {"normalize": normalize, "percentile": 0.9, "alpha": 0.3}
    tensors = inputs(shape)
    ours = run(degradation_target, tensors, **options, backend="triton")
    assert_near(ours, run(degradation_target_reference, tensors, **options), 1e-10)


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_without_features_over_several_tiles(poisoned: None, monkeypatch, normalize: str) -> None:
    monkeypatch.setattr(_config, "TARGET_TILE", 64)
    monkeypatch.setattr(_config, "PARTIALS", 2)
    tensors = inputs((2, 9, 70, 1, 1, 1), features=False)
    ours = run(degradation_target, tensors, normalize=normalize, backend="triton")
    assert_near(ours, run(degradation_target_reference, tensors, normalize=normalize), 1e-10)


@pytest.mark.parametrize("normalize", ["minmax", "percentile"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_identical_images_give_zero(poisoned: None, normalize: str, dtype) -> None:
    image, _, f, _ = (t.detach() for t in inputs((1, 9, 11, 37, 3, 2), torch.float32))
    image = (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    for features in (f, f * 1e-9, f * 0, f * 1e6):
        out = degradation_target(image, image, features, features, normalize=normalize, backend="triton")
        assert (out == 0).all()


@pytest.mark.parametrize("normalize", ["minmax", "percentile"])
def test_ties_share_the_gradient(monkeypatch, normalize: str) -> None:
    """Exact ties of the bounds, as 8-bit images have, in some tiles and not in others: the split of the reference."""
    monkeypatch.setattr(_config, "TARGET_TILE", 32)
    reference = torch.zeros(1, 3, 9, 12, dtype=torch.float64)
    y, x = torch.arange(9)[:, None], torch.arange(12)[None, :]
    levels = 1 + (7 * y + 3 * x) % 5 + y // 4  # never 0: the gradient of |0| hides the shares
    tensors = [reference.requires_grad_(), (reference.detach() + levels / 8).requires_grad_()]
    options = {"normalize": normalize, "percentile": 0.8}
    ours = run(degradation_target, tensors, **options, backend="triton")
    assert_near(ours, run(degradation_target_reference, tensors, **options), 1e-12)


def test_below_the_floor_there_is_no_range() -> None:
    tensors = inputs((1, 6, 7, 1, 1, 1), features=False)
    ours = run(degradation_target, tensors, alpha=0.5, normalize="minmax", floor=9.0, backend="triton")
    assert_near(ours, run(degradation_target_reference, tensors, alpha=0.5, normalize="minmax", floor=9.0), 1e-12)


def test_saved_tensors_are_those_of_the_compiled_operator() -> None:
    if not hasattr(torch.ops.finpercep, "degradation_target"):
        pytest.skip("the compiled extension is not built")
    tensors = [t.detach() for t in inputs((2, 9, 8, 4, 3, 3))]
    for normalize in range(4):
        options = (0.5, normalize, 0.01, 0.9, 0.25)
        ours = torch.ops.finpercep.degradation_target_triton(*tensors, *options)
        assert_near(list(ours), list(torch.ops.finpercep.degradation_target(*tensors, *options)), 1e-11)


@pytest.mark.parametrize(
    ("dtype", "feature_dtype"),
    [(torch.uint8, torch.bfloat16), (torch.uint8, torch.float64), (torch.float32, torch.float64)],
)
def test_mixed_types(dtype, feature_dtype) -> None:
    tensors = inputs((1, 13, 10, 9, 3, 4), dtype, feature_dtype)
    ours = run(degradation_target, tensors, alpha=0.5, normalize="minmax", backend="triton")
    expected = run(degradation_target_reference, tensors, alpha=0.5, normalize="minmax")
    assert_near(ours, expected, 1e-2 if feature_dtype == torch.bfloat16 else 2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("normalize", ["none", "scale"])
def test_low_precision(dtype, normalize: str) -> None:
    """No further from fp64 than eager PyTorch is."""
    low = inputs((1, 20, 15, 24, 4, 3), dtype)
    wide = [t.detach().double().requires_grad_() for t in low]
    truth = run(degradation_target_reference, wide, normalize=normalize)
    eager = run(degradation_target_reference, low, normalize=normalize)
    ours = run(degradation_target, low, normalize=normalize, backend="triton")
    for value, reference, target in zip(ours, eager, truth, strict=True):
        limit = (reference.double() - target).abs().max() * 1.1 + 1e-6
        assert (value.double() - target).abs().max() <= limit


def test_some_gradients_only() -> None:
    tensors = inputs((1, 6, 7, 4, 3, 3))
    everything = run(degradation_target, tensors, alpha=0.5, normalize="minmax", backend="triton")[1:]
    for wanted in ((0,), (3,)):
        some = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        for gradient, i in zip(
            run(degradation_target, some, alpha=0.5, normalize="minmax", backend="triton")[1:], wanted, strict=True
        ):
            torch.testing.assert_close(gradient, everything[i], rtol=0, atol=0)


@pytest.mark.parametrize("normalize", ["minmax", "percentile"])
def test_nan_is_not_hidden(monkeypatch, normalize: str) -> None:
    monkeypatch.setattr(_config, "TARGET_TILE", 64)
    image, other = (t.detach() for t in inputs((2, 10, 17, 1, 1, 1), features=False))
    other[0, 1, 3, 15] = float("nan")
    out = degradation_target(image, other, normalize=normalize, backend="triton")
    assert out[0].isnan().all()
    assert not out[1].isnan().any()


def test_views() -> None:
    generator = torch.Generator().manual_seed(1)
    storage = torch.rand(1 + 2 * 3 * 10 * 12, generator=generator)[1:].view(2, 3, 10, 12)
    last = torch.rand(2, 10, 12, 3, generator=generator).permute(0, 3, 1, 2)
    f = torch.randn(2, 3, 3, 5, generator=generator).permute(0, 3, 1, 2)
    g = torch.randn(2, 5, 3, 6, generator=generator)[..., ::2]
    ours = degradation_target(storage[..., ::2], last[..., ::2], f, g, alpha=0.5, normalize="minmax", backend="triton")
    expected = degradation_target_reference(storage[..., ::2], last[..., ::2], f, g, alpha=0.5, normalize="minmax")
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
