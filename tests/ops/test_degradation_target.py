"""degradation_target: values by hand, the compiled backend against the reference, autograd, compile, errors."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.ops import degradation_target, degradation_target_reference

NORMALIZE = ("none", "minmax", "percentile", "scale")
# B, H, W, C, h, w: divisible, odd, features larger than the image, wide rows, one pixel, one column, no images
SHAPES = [
    (3, 64, 64, 16, 8, 8),
    (2, 17, 23, 7, 3, 4),
    (1, 5, 6, 33, 7, 11),
    (1, 3, 2100, 5, 2, 150),
    (1, 1, 1, 3, 1, 1),
    (2, 40, 1, 3, 5, 1),
    (0, 8, 8, 4, 2, 2),
]


def inputs(shape, dtype=torch.float32, feature_dtype=None, features: bool = True) -> list[Tensor]:
    batch, height, width, channels, h, w = shape
    generator = torch.Generator().manual_seed(0)
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
    if not wanted:
        return [out]
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


@pytest.mark.parametrize("function", [degradation_target, degradation_target_reference])
def test_values_by_hand(function) -> None:
    reference = torch.zeros(1, 3, 1, 4)
    distorted = torch.zeros(1, 3, 1, 4)
    distorted[0, :, 0, 1] = 0.3
    distorted[0, 0, 0, 2] = 0.6
    near = {"rtol": 1e-6, "atol": 1e-7}
    raw = function(reference, distorted, normalize="none")
    torch.testing.assert_close(raw.flatten(), torch.tensor([0, 0.3, 0.2, 0]), **near)
    minmax = function(reference, distorted, normalize="minmax")
    torch.testing.assert_close(minmax.flatten(), torch.tensor([0, 1, 2 / 3, 0]), **near)
    scaled = function(reference, distorted, normalize="scale", scale=0.25)
    torch.testing.assert_close(scaled.flatten(), torch.tensor([0, 1, 0.8, 0]), **near)
    floored = function(reference, distorted, normalize="minmax", floor=0.6)
    torch.testing.assert_close(floored.flatten(), torch.tensor([0, 0.5, 1 / 3, 0]), **near)
    # four sorted values 0, 0, .2, .3: ranks 1 and 2 of percentile 0.6 are 0 and .2
    percentile = function(reference, distorted, normalize="percentile", percentile=0.6)
    torch.testing.assert_close(percentile.flatten(), torch.tensor([0.0, 1, 1, 0]), **near)


@pytest.mark.parametrize("function", [degradation_target, degradation_target_reference])
def test_defaults_by_hand(function) -> None:
    """Severity: 0.08 counts as all of it; of a difference of pixels, beside features, a quarter."""
    close, near = {"rtol": 1e-5, "atol": 1e-6}, torch.zeros(1, 3, 1, 4)
    near[..., 1], near[..., 2], near[..., 3] = 0.02, 0.04, 0.16
    alike = torch.ones(1, 2, 1, 1)
    found = function(torch.zeros_like(near), near)
    torch.testing.assert_close(found.flatten(), torch.tensor([0, 0.25, 0.5, 1.0]), **close)
    found = function(torch.zeros_like(near), near, alike, alike)
    torch.testing.assert_close(found.flatten(), torch.tensor([0, 0.0625, 0.125, 0.5]), **close)
    # A range of a gray level is half of the floor of two; of 401 pixels one in 200 may saturate: the two largest.
    level = torch.tensor([0.0, 1 / 255]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    found = function(torch.zeros_like(level), level, normalize="minmax")
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 0.5]), **close)
    ramp = (torch.arange(401) / 400).view(1, 1, 1, 401).expand(1, 3, 1, 401)
    found = function(torch.zeros_like(ramp), ramp, normalize="percentile").flatten()
    assert int((found >= 1).sum()) == int((found <= 0).sum()) == 3
    assert (found.min(), found.max()) == (0, 1)
    torch.testing.assert_close(found[200:203], torch.tensor([198.0, 199.0, 200.0]) / 396, **close)


def test_faint_and_missing_features() -> None:
    """The angle counts whatever the length, down to where squares vanish; nothing against something is 1."""
    image = torch.full((1, 3, 1, 3), 0.5)
    f, g = torch.zeros(2, 1, 2, 1, 3).unbind()
    f[0, 0], g[0, 1] = torch.tensor([1e-4, 0.0, 0.0]), torch.tensor([1e-4, 3.0, 0.0])
    for function in (degradation_target, degradation_target_reference):
        found = function(image, image, f, g, alpha=0.0, normalize="none")
        torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 1.0, 0.0]), rtol=1e-6, atol=1e-7)
    f = torch.randn(1, 7, 64, 64, generator=torch.Generator().manual_seed(0))
    image = image[..., :1, :1].expand(1, 3, 64, 64)
    for function in (degradation_target, degradation_target_reference):  # parallel: 1 - cos is never below 0
        assert function(image, image, f, 3 * f, alpha=0.0, normalize="none").min() == 0


def test_features_by_hand() -> None:
    image = torch.full((1, 3, 4, 4), 0.5)
    f = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    g = f.clone()
    g[0, :, 0, 0] = torch.tensor([0.0, 2.0])  # orthogonal: distance 1
    g[0, :, 1, 1] = torch.tensor([-3.0, 0.0])  # opposite: distance 2
    out = degradation_target(image, image, f, g, alpha=0.25, normalize="none")
    low = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(1, 1, 2, 2)
    torch.testing.assert_close(out, 0.75 * F.interpolate(low, (4, 4), mode="bilinear"), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8])
def test_identical_images_give_zero(simd: str, poisoned: None, normalize: str, dtype) -> None:
    image, _, f, _ = inputs((2, 19, 21, 70, 4, 5), torch.float32)
    image = (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    for features in (f, f * 1e-9, f * 0, f * 1e6):
        assert (degradation_target(image, image, features, features, normalize=normalize) == 0).all()
    assert (degradation_target(image, image, normalize=normalize) == 0).all()


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(simd: str, poisoned: None, shape, normalize: str) -> None:
    options = {"normalize": normalize, "percentile": 0.9, "alpha": 0.3}
    for features in (True, False):
        for dtype, tolerance in ((torch.float32, 2e-4), (torch.float64, 1e-10)):
            tensors = inputs(shape, dtype, features=features)
            ours = run(degradation_target, tensors, **options, backend="cpp")
            assert_near(ours, run(degradation_target_reference, tensors, **options), tolerance)


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_mixed_types(simd: str, normalize: str) -> None:
    shape = (2, 33, 47, 9, 5, 6)
    for dtype, feature_dtype in (
        (torch.uint8, torch.float32),
        (torch.uint8, torch.bfloat16),
        (torch.uint8, torch.float64),
        (torch.float32, torch.float64),
        (torch.float64, torch.float16),
        (torch.float32, torch.bfloat16),
    ):
        tensors = inputs(shape, dtype, feature_dtype)
        ours = run(degradation_target, tensors, normalize=normalize, backend="cpp")
        expected = run(degradation_target_reference, tensors, normalize=normalize)
        assert_near(ours, expected, 1e-2 if feature_dtype in (torch.bfloat16, torch.float16) else 2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalize", ["none", "scale"])
def test_low_precision(simd: str, dtype, normalize: str) -> None:
    """No further from fp64 than eager PyTorch is."""
    low = inputs((2, 40, 30, 24, 8, 7), dtype)
    truth = run(degradation_target_reference, [t.detach().double().requires_grad_() for t in low], normalize=normalize)
    eager = run(degradation_target_reference, low, normalize=normalize)
    ours = run(degradation_target, low, normalize=normalize, backend="cpp")
    for value, reference, target in zip(ours, eager, truth, strict=True):
        limit = (reference.double() - target).abs().max() * 1.1 + 1e-6
        assert (value.double() - target).abs().max() <= limit


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_gradcheck(cpp: str, normalize: str, features: bool) -> None:
    tensors = inputs((2, 4, 3, 2, 2, 2), torch.float64, features=features)
    options = {"normalize": normalize, "percentile": 0.9, "backend": cpp}
    assert torch.autograd.gradcheck(lambda *t: degradation_target(*t, **options), tensors)
    if normalize == "minmax":  # below the floor the range has no gradient
        assert torch.autograd.gradcheck(lambda *t: degradation_target(*t, **options, floor=9.0), tensors)


@pytest.mark.parametrize("normalize", ["minmax", "percentile"])
def test_ties_share_the_gradient(simd: str, normalize: str) -> None:
    """Exact ties of the bounds, as 8-bit images have: the same split as amin and amax make."""
    tensors = [(t * 4).round() / 4 for t in inputs((1, 12, 12, 1, 1, 1), torch.float64, features=False)]
    tensors = [t.detach().requires_grad_() for t in tensors]
    options = {"normalize": normalize, "percentile": 0.8}
    ours = run(degradation_target, tensors, **options, backend="cpp")
    assert_near(ours, run(degradation_target_reference, tensors, **options), 1e-12)


def test_some_gradients_only(cpp: str) -> None:
    tensors = inputs((2, 9, 8, 4, 3, 3), torch.float64)
    everything = run(degradation_target, tensors, alpha=0.5, normalize="minmax", backend=cpp)[1:]
    for wanted in ((0,), (1,), (2,), (3,), (1, 3)):
        some = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        for gradient, i in zip(
            run(degradation_target, some, alpha=0.5, normalize="minmax", backend=cpp)[1:], wanted, strict=True
        ):
            torch.testing.assert_close(gradient, everything[i], rtol=0, atol=0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("normalize", ["minmax", "percentile"])
def test_nan_is_not_hidden(simd: str, normalize: str, sign: int) -> None:
    image, other = (t.detach() for t in inputs((2, 40, 70, 1, 1, 1), features=False))
    other[0, 1, 3, 65] = math.copysign(math.nan, sign)
    out = degradation_target(image, other, normalize=normalize, backend="cpp")
    assert out[0].isnan().all()
    assert not out[1].isnan().any()


def test_views_and_unaligned(simd: str) -> None:
    generator = torch.Generator().manual_seed(1)
    storage = torch.rand(1 + 2 * 3 * 10 * 12, generator=generator)[1:].view(2, 3, 10, 12)
    last = torch.rand(2, 10, 12, 3, generator=generator).permute(0, 3, 1, 2)
    f = torch.randn(2, 3, 3, 5, generator=generator).permute(0, 3, 1, 2)
    g = torch.randn(2, 5, 3, 6, generator=generator)[..., ::2]
    for images in ((storage, last), (storage[..., ::2], last[..., ::2]), (storage[:, :, 1:], last[:, :, 1:])):
        ours = degradation_target(*images, f, g, alpha=0.5, normalize="minmax", backend="cpp")
        torch.testing.assert_close(
            ours, degradation_target_reference(*images, f, g, alpha=0.5, normalize="minmax"), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("shape", [(2, 700, 701, 9, 40, 44), (1, 700, 701, 300, 61, 63)], ids=str)
def test_large_and_streamed(simd: str, poisoned: None, shape) -> None:
    tensors = inputs(shape)
    ours = run(degradation_target, tensors, alpha=0.5, normalize="minmax", backend="cpp")
    expected = run(
        degradation_target_reference,
        [t.detach().double().requires_grad_() for t in tensors],
        alpha=0.5,
        normalize="minmax",
    )
    assert_near(ours, [t.float() for t in expected], 1e-3)


def test_opcheck(cpp: str) -> None:
    for normalize, features in ((0, True), (1, True), (2, True), (1, False)):
        tensors = inputs((2, 9, 8, 4, 3, 3), features=features)
        tensors += [None] * (4 - len(tensors))  # type: ignore[list-item]
        torch.library.opcheck(
            torch.ops.finpercep.degradation_target.default, (*tensors, 0.5, normalize, 0.01, 0.9, 0.25)
        )
        plain = [None if t is None else t.detach() for t in tensors]
        saved = torch.ops.finpercep.degradation_target(*plain, 0.5, normalize, 0.01, 0.9, 0.25)
        needs = 15 if features else 3
        torch.library.opcheck(
            torch.ops.finpercep.degradation_target_backward.default,
            (torch.ones_like(saved[0]), *plain, *saved, 0.5, normalize, 0.01, 0.25, needs),
        )


def test_compile_and_export(cpp: str) -> None:
    def doubled(*tensors: Tensor) -> Tensor:
        return 2 * degradation_target(*tensors, alpha=0.5, normalize="minmax", backend=cpp).sqrt()

    tensors = inputs((2, 9, 8, 4, 3, 3))
    weights = [t.detach() + 0.1 for t in tensors]
    out = torch.compile(doubled, fullgraph=True)(*tensors)
    torch.testing.assert_close(out, doubled(*tensors))

    def squared(*tensors: Tensor) -> Tensor:
        return degradation_target(*tensors, alpha=0.5, normalize="minmax", backend=cpp) ** 2

    assert_near(run(torch.compile(squared, fullgraph=True), tensors), run(squared, tensors), 1e-6)

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return doubled(*tensors)

    exported = torch.export.export(Module(), tuple(tensors)).module()
    torch.testing.assert_close(exported(*weights), doubled(*weights))


def test_errors_name_the_argument() -> None:
    image, other, f, g = (t.detach() for t in inputs((2, 8, 8, 4, 3, 3)))
    cases = [
        (ValueError, "reference", (image[0], other), {}),
        (ValueError, "reference", (image[:, :1], other), {}),
        (ValueError, "distorted", (image, other[:1]), {}),
        (TypeError, "distorted", (image, other.double()), {}),
        (TypeError, "reference", (image.int(), other.int()), {}),
        (ValueError, "distorted_features", (image, other, f), {}),
        (ValueError, "reference_features", (image, other, f[:1], g[:1]), {}),
        (ValueError, "distorted_features", (image, other, f, g[..., :2]), {}),
        (ValueError, "normalize", (image, other), {"normalize": "max"}),
        (ValueError, "distorted", (image, other.to("meta")), {}),
        (ValueError, "reference_features", (image, other, f.to("meta"), g.to("meta")), {}),
        (ValueError, "reference_features", (image, other, f[:, :0], g[:, :0]), {}),
        (ValueError, "reference_features", (image, other, f[0], g[0]), {}),
        (TypeError, "reference_features", (image, other, f.long(), g.long()), {}),
        (ValueError, "alpha", (image, other), {"alpha": 1.5}),
        (ValueError, "alpha", (image, other), {"alpha": -0.5}),
        (ValueError, "percentile", (image, other), {"percentile": 0.5}),
        (ValueError, "floor", (image, other), {"floor": 0.0}),
        (ValueError, "scale", (image, other), {"scale": -1.0}),
        (ValueError, "percentile", (image, other), {"percentile": 99}),
    ]
    for error, start, arguments, options in cases:
        with pytest.raises(error, match=f"^{start}: expected") as caught:
            degradation_target(*arguments, **options)
        assert "\n" not in str(caught.value)
