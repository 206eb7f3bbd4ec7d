"""`modulate`: Eq. 7 of FinPercep-RM: downsample the degradation map, modulate the features by it, pool. One pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.ops import _backend, _registration

GATES = ("degradation", "quality", "residual")
RESAMPLES = ("area", "bilinear")
POOLS = (None, "mean")
# Inside a graph of torch.compile an operator is a barrier to fusion, and the definition is faster while the features
# are small. Bytes of features; measured on two CPU cores, pooled: forward alone, time of operator ÷ definition 1.19 at
# 4 MB, 0.85 at 17 MB; with gradients 1.08 at 0.4 MB, 0.96 at 1.6 MB. On a GPU, not measured, the operator always runs.
FUSED_BYTES, FUSED_BYTES_WITH_GRADIENT = 8 << 20, 1 << 20
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def modulate_reference(
    features: Tensor,
    degradation: Tensor,
    grid: tuple[int, int],
    *,
    gate: str = "degradation",
    resample: str = "area",
    pool: str | None = None,
) -> Tensor:
    """The definition of `modulate` in plain PyTorch. Math in fp32, or in fp64 when the features are fp64."""
    compute = torch.float64 if features.dtype == torch.float64 else torch.float32
    d = _downsample(degradation.to(compute), grid, resample)  # (B, 1, h, w)
    d = d.flatten(1).unsqueeze(-1)  # (B, h·w, 1)
    weight = {"degradation": d, "quality": 1 - d, "residual": 1 + d}[gate]
    out = features.to(compute) * weight  # (B, h·w, C)
    if pool == "mean":
        out = out.mean(dim=1)
    return out.to(features.dtype)


def _downsample(degradation: Tensor, grid: tuple[int, int], resample: str) -> Tensor:
    if resample == "bilinear":
        return F.interpolate(degradation, size=tuple(grid), mode="bilinear", align_corners=False)
    (height, width), (h, w) = degradation.shape[-2:], grid
    if torch.compiler.is_compiling() and height % h == 0 and width % w == 0:
        # the same means of whole cells; with adaptive pooling, torch.compile would compile anew for each size
        return degradation.unflatten(2, (h, height // h)).unflatten(4, (w, width // w)).mean((3, 5))
    return F.interpolate(degradation, size=tuple(grid), mode="area")


def modulate(
    features: Tensor,
    degradation: Tensor,
    grid: tuple[int, int],
    *,
    gate: str = "degradation",
    resample: str = "area",
    pool: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """Modulate tokens by the degradation map (Eq. 7), optionally pooled; differentiable in both.

    Args:
        features: (B, h·w, C) float tokens, row-major.
        degradation: (B, 1, H, W) float map, 1 = degraded; any H/h ratio, its dtype may differ from the features'.
        grid: (h, w) of the tokens.
        gate: "degradation" f·d (the equation as printed), "quality" f·(1-d), "residual" f·(1+d).
        resample: "area" (adaptive average pooling) or "bilinear" (align_corners=False).
        pool: None, or "mean" over the tokens.
        backend: None picks the fastest (inside torch.compile that may be the definition, see `FUSED_BYTES`);
            "reference", "cpp", "triton" or "cuda" insist.

    Returns: (B, h·w, C), or (B, C) with pool="mean"; dtype of the features, contiguous.
    Raises: ValueError for shapes, devices and options; TypeError for dtypes; RuntimeError for a missing backend.
    """
    h, w = _check(features, degradation, grid, gate, resample, pool)
    if backend is None and _is_better_fused(features, degradation):
        backend = "reference"
    features, degradation = _backend.savable(features, degradation)
    chosen = _backend.resolve(backend, "modulate", features.device, features.dtype)
    if chosen == "reference":
        return modulate_reference(features, degradation, (h, w), gate=gate, resample=resample, pool=pool)
    out, _ = _backend.operator(chosen, "modulate")(
        features, degradation, h, w, GATES.index(gate), RESAMPLES.index(resample), pool == "mean"
    )
    return out


def _is_better_fused(features: Tensor, degradation: Tensor) -> bool:
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting() or features.device.type != "cpu":
        return False
    gradient = torch.is_grad_enabled() and (features.requires_grad or degradation.requires_grad)
    limit = FUSED_BYTES_WITH_GRADIENT if gradient else FUSED_BYTES
    return features.numel() * features.element_size() < limit


def _check(
    features: Tensor, degradation: Tensor, grid: tuple[int, int], gate: str, resample: str, pool: str | None
) -> tuple[int, int]:
    for name, value, allowed in (
        ("gate", gate, GATES),
        ("resample", resample, RESAMPLES),
        ("pool", pool, POOLS),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, got {value!r}")
    _backend.require_tensors(features=features, degradation=degradation)
    if features.dim() != 3:
        raise ValueError(f"features: expected (B, h*w, C), got shape {tuple(features.shape)}")
    if degradation.dim() != 4 or degradation.shape[1] != 1:
        raise ValueError(f"degradation: expected (B, 1, H, W), got shape {tuple(degradation.shape)}")
    for name, tensor in (("features", features), ("degradation", degradation)):
        if tensor.dtype not in _FLOATS:
            raise TypeError(f"{name}: expected float32, bfloat16, float16 or float64, got {tensor.dtype}")
    if features.device != degradation.device:
        raise ValueError(f"degradation: expected on {features.device} like features, got {degradation.device}")
    if features.shape[0] != degradation.shape[0]:
        raise ValueError(f"degradation: expected batch {features.shape[0]} like features, got {degradation.shape[0]}")
    pair = isinstance(grid, (tuple, list)) and len(grid) == 2
    if not pair or grid[0] < 1 or grid[1] < 1 or grid[0] * grid[1] != features.shape[1]:
        raise ValueError(f"grid: expected (h, w) with h*w = {features.shape[1]} tokens, got {grid}")
    if degradation.shape[2] < 1 or degradation.shape[3] < 1:
        raise ValueError(f"degradation: expected H, W >= 1, got shape {tuple(degradation.shape)}")
    return grid[0], grid[1]


def _fake(
    features: Tensor, degradation: Tensor, h: int, w: int, gate: int, resample: int, pool: bool
) -> tuple[Tensor, Tensor]:
    batch, tokens, channels = features.shape
    shape = (batch, channels) if pool else (batch, tokens, channels)
    compute = torch.float64 if features.dtype == torch.float64 else torch.float32
    return features.new_empty(shape), features.new_empty((batch, tokens), dtype=compute)


def _fake_backward(
    grad: Tensor,
    features: Tensor,
    degradation: Tensor,
    d: Tensor,
    h: int,
    w: int,
    gate: int,
    resample: int,
    pool: bool,
    need_features: bool,
    need_map: bool,
) -> tuple[Tensor, Tensor]:
    return (
        features.new_empty(features.shape if need_features else (0,)),
        degradation.new_empty(degradation.shape if need_map else (0,)),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    features, degradation, *ctx.options = inputs
    ctx.save_for_backward(features, degradation, output[1])  # the map gives shape and dtype of its gradient
    ctx.set_materialize_grads(False)


def _backward(operator, ctx, grad: Tensor | None, grad_d: Tensor | None):  # type: ignore[no-untyped-def]
    none = (None,) * 5
    if grad is None:
        return None, None, *none
    features, degradation, d = ctx.saved_tensors
    need_features, need_map = ctx.needs_input_grad[:2]
    grad_features, grad_map = operator(grad, features, degradation, d, *ctx.options, need_features, need_map)
    return grad_features if need_features else None, grad_map if need_map else None, *none


_registration.register(
    "modulate", fake=_fake, fake_backward=_fake_backward, setup_context=_setup_context, backward=_backward
)
