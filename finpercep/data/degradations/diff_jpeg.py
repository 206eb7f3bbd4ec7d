"""JPEG round trips of a batch, each sample at its own quality, with libjpeg's arithmetic; differentiable on wish."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.degradations.compiled import compiled

Rounding = Callable[[Tensor], Tensor]

# ITU-T T.81, tables K.1 and K.2: quantization of luminance and chrominance at quality 50.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def jpeg_each(images: Tensor, quality: Tensor, *, differentiable: bool = False) -> Tensor:
    """Compress and decompress as JPEG: 4:2:0, standard tables, smooth chroma upsampling, as Pillow does by default.

    Args:
        images: (B,3,H,W), float in [0, 1]; sides that are no multiple of 16 are filled with the last pixel.
        quality: (B,), 1 to 100, fractions allowed.
        differentiable: quantize with round(x) + (x - round(x))^3 (Shin and Song 2017) and leave pixels unrounded;
            exact rounding has gradient 0.

    Returns: (B,3,H,W) in [0, 1], multiples of 1/255 unless differentiable.
    """
    kernel = None if differentiable else compiled("degrade_jpeg", images)
    if kernel is not None:
        return kernel(images.contiguous(), *quantization_tables(quality.to(images)))
    whole: Rounding = (lambda x: x) if differentiable else torch.round
    step: Rounding = _soft_round if differentiable else torch.round
    height, width = images.shape[-2:]
    pixels = F.pad(images, (0, -width % 16, 0, -height % 16), mode="replicate")
    luma, chroma = quantization_tables(quality.to(pixels))
    ycc = whole(_mix(whole(pixels.clamp(0, 1) * 255), TO_YCC, (0.0, 128.0, 128.0)))
    y = _blocks_round_trip(ycc[:, :1], luma, whole, step)
    small = _blocks_round_trip(_downsample(ycc[:, 1:], whole), chroma, whole, step)
    cbcr = _upsample(small, whole)
    rgb = _mix(torch.cat([y, cbcr - 128], 1), TO_RGB, (0.0, 0.0, 0.0))
    return (whole(rgb).clamp(0, 255) / 255)[..., :height, :width]


def quantization_tables(quality: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and chrominance tables (B,8,8) by the IJG's formula; quality (B,)."""
    q = quality.clamp(1, 100)
    percent = torch.where(q < 50, (5000 / q).floor(), 200 - 2 * q).view(-1, 1, 1)
    tables = (_constant(table, quality.dtype, quality.device) for table in (LUMINANCE, CHROMINANCE))
    luma, chroma = (((table * percent + 50) / 100).floor().clamp(1, 255) for table in tables)
    return luma, chroma


def _soft_round(x: Tensor) -> Tensor:
    nearest = torch.round(x.detach())
    return nearest + (x - nearest) ** 3


def _mix(planes: Tensor, matrix: tuple[tuple[float, ...], ...], offset: tuple[float, ...]) -> Tensor:
    """A color matrix at every pixel of (B,3,H,W)."""
    weight, shift = (_constant(values, planes.dtype, planes.device) for values in (matrix, offset))
    return (weight @ planes.flatten(2)).view(planes.shape) + shift.view(3, 1, 1)


def _downsample(planes: Tensor, whole: Rounding) -> Tensor:
    """Means of 2 x 2; halves are rounded down and up in turn along a row, as libjpeg does against a drift."""
    mean = F.avg_pool2d(planes, 2)
    lean = torch.full_like(mean[:1, :1], 0.125)
    lean[..., ::2] = -0.125
    return whole(mean + lean)


def _upsample(planes: Tensor, whole: Rounding) -> Tensor:
    """Twice as large: each value is 9/16, 3/16, 3/16, 1/16 of its four nearest (libjpeg's "fancy" upsampling)."""
    padded = F.pad(planes, [1] * 4, mode="replicate")
    columns = _stretch(_stretch(padded, 2), 3)
    lean = torch.full_like(columns[:1, :1], 1 / 32)  # libjpeg rounds halves up at even columns, down at odd ones
    lean[..., 1::2] = -1 / 32
    return whole(columns + lean)


def _stretch(padded: Tensor, dim: int) -> Tensor:
    """Along `dim`, 3/4 of each inner value and 1/4 of the neighbor before, then after it."""
    size = padded.shape[dim] - 2
    inner, before, after = (padded.narrow(dim, start, size) for start in (1, 0, 2))
    both = torch.stack([0.75 * inner + 0.25 * before, 0.75 * inner + 0.25 * after], dim + 1)
    return both.flatten(dim, dim + 1)


def _blocks_round_trip(planes: Tensor, table: Tensor, whole: Rounding, quantize: Rounding) -> Tensor:
    """Blocks of 8 x 8: cosine transform, quantization by (B,8,8), and back to whole levels in [0, 255]."""
    batch, channels, height, width = planes.shape
    basis = _constant(_cosines(), planes.dtype, planes.device)
    step = table.view(batch, 1, 1, 8, 1, 8)
    blocks = _transform(planes - 128, basis).view(batch, channels, height // 8, 8, width // 8, 8)
    blocks = quantize(blocks / step) * step
    back = _transform(blocks.view(batch, channels, height, width), basis.T)
    return whole(back + 128).clamp(0, 255)


def _transform(planes: Tensor, basis: Tensor) -> Tensor:
    """basis · block · basis^T for every 8 x 8 block of (B,C,H,W), as two matrix products without moving blocks."""
    shape = planes.shape
    rows = basis @ planes.reshape(-1, 8, shape[-1])
    return (rows.reshape(-1, 8) @ basis.T).view(shape)


@cache
def _cosines() -> tuple[tuple[float, ...], ...]:
    """The orthonormal 8-point DCT-II, (8,8): row u, column x."""
    u, x = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)[None]
    basis = 0.5 * torch.cos((2 * x + 1) * u * math.pi / 16)
    basis[0] /= math.sqrt(2)
    return tuple(tuple(row) for row in basis.tolist())


@cache
def _constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers as a tensor, copied to a device once: each copy waits for a GPU, and none can be in a CUDA graph."""
    with torch.inference_mode(False):  # gradients may flow through it later
        return torch.tensor(values, dtype=dtype, device=device)
