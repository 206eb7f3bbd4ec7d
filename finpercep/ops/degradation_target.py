"""`degradation_target`: fuse pixel and feature differences of two images into the ground-truth map `M_gt`.

    raw = alpha · mean_c |ref - dist| + (1 - alpha) · upsample_bilinear(1 - cos(f_ref, f_dist))
    M   = Normalize(raw)

Choices where the paper is silent:
- alpha = 0.25; without features the pixel difference counts alone and alpha is not used.
- The cosine is dot / sqrt(|f|²·|g|²), which is exactly 1 for identical features; where that product is below 1e-24,
  the distance is 0 if both squared norms are equal and 1 otherwise, with no gradient.
- `minmax`: (raw - lo) / max(hi - lo, floor), lo and hi per image. floor = 2/255: a range below two 8-bit gray levels is
  quantization noise and must not be blown up to full severity.
- `percentile`: the same with lo, hi = the (1 - percentile) and percentile order statistics (nearest rank), clamped to
  [0, 1]. 0.995: half a per cent of outliers may saturate.
- `scale`: raw / scale, clamped to 1, the default: severity stays comparable between images. 0.08 was chosen by eye, see
  docs/choices.md.
- Gradients reach lo and hi, shared evenly over tied pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.ops import _backend, _registration

NORMALIZATIONS = ("none", "minmax", "percentile", "scale")
DEFAULT_FLOOR = 2 / 255
DEFAULT_PERCENTILE = 0.995
DEFAULT_ALPHA = 0.25
DEFAULT_NORMALIZE = "scale"
DEFAULT_SCALE = 0.08
COSINE_EPS = 1e-24  # on the product of the squared norms
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _at_least(x: Tensor, limit: float) -> Tensor:
    """clamp_min with the full gradient at the limit itself; torch's own differs between its versions there."""
    return torch.where(x < limit, torch.full_like(x, limit), x)


def cosine_distance_reference(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos over channels, (B, C, h, w) × 2 -> (B, 1, h, w), in [0, 2]; exactly 0 for identical features."""
    dot, aa, bb = (a * b).sum(1, True), (a * a).sum(1, True), (b * b).sum(1, True)
    product = aa * bb
    safe = product > COSINE_EPS
    cosine = dot / torch.where(safe, product, 1).sqrt()
    return torch.where(safe, _at_least(1 - cosine, 0), (aa != bb).to(a.dtype))


def percentile_ranks(count: int, percentile: float) -> tuple[int, int]:
    """Zero-based nearest ranks of the lower and upper bound among `count` sorted values."""
    high = int(percentile * (count - 1) + 0.5)
    return count - 1 - high, high


def _order_statistic(flat: Tensor, rank: int) -> Tensor:
    """The value of `rank` in each row (B, P) -> (B, 1); its gradient is shared evenly over equal values."""
    value = flat.detach().sort(dim=1).values[:, rank : rank + 1]
    ties = (flat.detach() == value).to(flat.dtype)
    return value + ((flat - flat.detach()) * ties).sum(1, True) / ties.sum(1, True)


def degradation_target_reference(
    reference: Tensor,
    distorted: Tensor,
    reference_features: Tensor | None = None,
    distorted_features: Tensor | None = None,
    *,
    alpha: float = DEFAULT_ALPHA,
    normalize: str = DEFAULT_NORMALIZE,
    floor: float = DEFAULT_FLOOR,
    percentile: float = DEFAULT_PERCENTILE,
    scale: float = DEFAULT_SCALE,
) -> Tensor:
    """The definition of `degradation_target` in plain PyTorch. Math in fp32, or fp64 if any input is fp64."""
    inputs = [t for t in (reference, distorted, reference_features, distorted_features) if t is not None]
    compute = torch.float64 if any(t.dtype == torch.float64 for t in inputs) else torch.float32
    unit = 1 / 255 if reference.dtype == torch.uint8 else 1.0
    raw = (reference.to(compute) - distorted.to(compute)).abs().mean(1, True) * unit  # (B, 1, H, W)
    if reference_features is not None and distorted_features is not None:
        distance = cosine_distance_reference(reference_features.to(compute), distorted_features.to(compute))
        upsampled = F.interpolate(distance, size=raw.shape[-2:], mode="bilinear", align_corners=False)
        raw = alpha * raw + (1 - alpha) * upsampled
    if raw.shape[0] == 0 or normalize == "none":
        return raw
    if normalize == "scale":
        return torch.where(raw >= scale, torch.ones_like(raw), raw / scale)
    flat = raw.flatten(1)
    if normalize == "minmax":
        low, high = flat.amin(1, True), flat.amax(1, True)
        return ((flat - low) / _at_least(high - low, floor)).view_as(raw)
    rank_low, rank_high = percentile_ranks(flat.shape[1], percentile)
    low, high = _order_statistic(flat, rank_low), _order_statistic(flat, rank_high)
    ratio = _at_least((flat - low) / _at_least(high - low, floor), 0)
    return torch.where(ratio > 1, torch.ones_like(ratio), ratio).view_as(raw)


def degradation_target(
    reference: Tensor,
    distorted: Tensor,
    reference_features: Tensor | None = None,
    distorted_features: Tensor | None = None,
    *,
    alpha: float = DEFAULT_ALPHA,
    normalize: str = DEFAULT_NORMALIZE,
    floor: float = DEFAULT_FLOOR,
    percentile: float = DEFAULT_PERCENTILE,
    scale: float = DEFAULT_SCALE,
    backend: str | None = None,
) -> Tensor:
    """Ground-truth degradation map of `distorted` against `reference`; differentiable in all float inputs.

    Args:
        reference, distorted: (B, 3, H, W), float in [0, 1] or uint8 (read as value/255), same dtype and shape.
        reference_features, distorted_features: (B, C, h, w) float, any h, w; both or neither.
        alpha: weight of the pixel difference in [0, 1]; not used without features.
        normalize: "minmax" (identical images give exactly 0), "percentile", "scale" or "none".
        floor: smallest range that minmax and percentile divide by, > 0.
        percentile: upper bound's rank in (0.5, 1]; the lower bound is its mirror image.
        scale: constant that normalize="scale" divides by, > 0; keeps severity comparable between images.
        backend: None picks the fastest; "reference", "cpp", "triton" or "cuda" insist.

    Returns: (B, 1, H, W), fp32 (fp64 if any input is fp64), 1 = degraded.
    Raises: ValueError for shapes, devices and options; TypeError for dtypes; RuntimeError for a missing backend.
    """
    pairs = _check(reference, distorted, reference_features, distorted_features)
    _check_options(alpha, normalize, floor, percentile, scale)
    pairs = _backend.savable(*pairs)
    reference, distorted, reference_features, distorted_features = pairs
    chosen = _backend.resolve(backend, "degradation_target", reference.device, torch.float32)
    if chosen == "reference":
        return degradation_target_reference(
            reference,
            distorted,
            reference_features,
            distorted_features,
            alpha=alpha,
            normalize=normalize,
            floor=floor,
            percentile=percentile,
            scale=scale,
        )
    out, *_ = _backend.operator(chosen, "degradation_target")(
        *_promote(pairs), alpha, NORMALIZATIONS.index(normalize), floor, percentile, scale
    )
    return out


_Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _promote(inputs: _Inputs) -> _Inputs:
    """Kernels take one precision: fp64 beside anything else turns everything to fp64."""
    reference, distorted, ref_features, dist_features = inputs
    if ref_features is None or dist_features is None:
        return inputs
    if (reference.dtype == torch.float64) == (ref_features.dtype == torch.float64):
        return inputs
    unit = 255.0 if reference.dtype == torch.uint8 else 1.0
    images = reference.to(torch.float64) / unit, distorted.to(torch.float64) / unit
    return *images, ref_features.to(torch.float64), dist_features.to(torch.float64)


def _check(reference: Tensor, distorted: Tensor, a: Tensor | None, b: Tensor | None) -> _Inputs:
    features = {"reference_features": a, "distorted_features": b}
    _backend.require_tensors(*features, reference=reference, distorted=distorted, **features)
    if reference.dim() != 4 or reference.shape[1] != 3 or 0 in reference.shape[2:]:
        raise ValueError(f"reference: expected (B, 3, H, W), got shape {tuple(reference.shape)}")
    if reference.dtype not in (*_FLOATS, torch.uint8):
        raise TypeError(f"reference: expected a float image or uint8, got {reference.dtype}")
    if (a is None) != (b is None):
        missing = "reference_features" if a is None else "distorted_features"
        raise ValueError(f"{missing}: expected both features or neither, got None")
    _check_same("distorted", distorted, "reference", reference)
    if a is not None and b is not None:
        if a.dim() != 4 or 0 in a.shape[1:]:
            raise ValueError(f"reference_features: expected (B, C, h, w), got shape {tuple(a.shape)}")
        if a.dtype not in _FLOATS:
            raise TypeError(f"reference_features: expected a float dtype, got {a.dtype}")
        if a.shape[0] != reference.shape[0]:
            raise ValueError(f"reference_features: expected batch {reference.shape[0]}, got {a.shape[0]}")
        if a.device != reference.device:
            raise ValueError(f"reference_features: expected on {reference.device}, got {a.device}")
        _check_same("distorted_features", b, "reference_features", a)
    return reference, distorted, a, b


def _check_same(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise ValueError(f"{name}: expected shape {tuple(other.shape)} like {other_name}, got {tuple(tensor.shape)}")
    if tensor.dtype != other.dtype:
        raise TypeError(f"{name}: expected {other.dtype} like {other_name}, got {tensor.dtype}")
    if tensor.device != other.device:
        raise ValueError(f"{name}: expected on {other.device} like {other_name}, got {tensor.device}")


def _check_options(alpha: float, normalize: str, floor: float, percentile: float, scale: float) -> None:
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize: expected one of {NORMALIZATIONS}, got {normalize!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a weight in [0, 1], got {alpha}")
    if not 0.5 < percentile <= 1:
        raise ValueError(f"percentile: expected in (0.5, 1], got {percentile}")
    for name, value in (("floor", floor), ("scale", scale)):
        if not value > 0:
            raise ValueError(f"{name}: expected > 0, got {value}")


def _fake(
    reference: Tensor,
    distorted: Tensor,
    reference_features: Tensor | None,
    distorted_features: Tensor | None,
    alpha: float,
    normalize: int,
    floor: float,
    percentile: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    compute = torch.float64 if reference.dtype == torch.float64 else torch.float32
    batch, _, height, width = reference.shape
    shape = (batch, 1, height, width)
    bounds = reference.new_empty((batch, 4), dtype=compute)
    sizes = (0,) if reference_features is None else (batch, 3, *reference_features.shape[2:])
    moments = reference.new_empty(sizes, dtype=compute)
    raw = reference.new_empty(shape if NORMALIZATIONS[normalize] == "percentile" else (0,), dtype=compute)
    return reference.new_empty(shape, dtype=compute), bounds, moments, raw


def _fake_backward(
    grad: Tensor,
    reference: Tensor,
    distorted: Tensor,
    reference_features: Tensor | None,
    distorted_features: Tensor | None,
    out: Tensor,
    bounds: Tensor,
    moments: Tensor,
    raw: Tensor,
    alpha: float,
    normalize: int,
    floor: float,
    scale: float,
    needs: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def like(tensor: Tensor | None, bit: int) -> Tensor:
        source = reference if tensor is None else tensor
        return source.new_empty(source.shape if needs & bit else (0,))

    return like(reference, 1), like(distorted, 2), like(reference_features, 4), like(distorted_features, 8)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, alpha, normalize, floor, _, scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.options = (alpha, normalize, floor, scale)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(operator, ctx, grad: Tensor | None, *unused):  # type: ignore[no-untyped-def]
    none = (None,) * 5
    needs = sum(1 << i for i in range(4) if ctx.needs_input_grad[i])
    if grad is None or needs == 0:
        return (None,) * 4 + none
    grads = operator(grad, *ctx.saved_tensors, *ctx.options, needs)
    return tuple(g if needs >> i & 1 else None for i, g in enumerate(grads)) + none


_registration.register(
    "degradation_target",
    fake=_fake,
    fake_backward=_fake_backward,
    setup_context=_setup_context,
    backward=_backward,
)
