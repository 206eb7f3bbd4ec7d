"""Batches of images of different sizes: a common canvas, and resizing each sample by its own factor and mode."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.degradations.blur_kernels import reflected
from finpercep.data.degradations.compiled import compiled

MODES = ("area", "bilinear", "bicubic")
BICUBIC = -0.75  # torch's (and OpenCV's) constant


class Ragged(NamedTuple):
    """`pixels` (B,C,Hc,Wc); sample i is its upper left `height[i]` x `width[i]`; sizes (B,), int64, on the CPU."""

    pixels: Tensor
    height: Tensor
    width: Tensor


def resize_each(
    images: Ragged, height: Tensor, width: Tensor, mode: Tensor, *, border: int = 0, mirror: bool = False
) -> Ragged:
    """Resize sample i to `height[i]` x `width[i]` as ``F.interpolate(size=…, mode=MODES[mode[i]])`` would.

    Args:
        images: (B,C,Hc,Wc).
        height, width, mode: (B,), int64, on the CPU.
        border: pixels to add on each side, for a filter that follows.
        mirror: fill the border, and what a sample leaves of the canvas, by reflection; else with the last pixel.

    Returns: the canvas is as large as the largest sample and its borders.
    """
    kernel = compiled("degrade_resize", images.pixels)
    if kernel is not None:
        pixels = images.pixels.contiguous()
        out = kernel(pixels, images.height, images.width, height, width, mode, border, mirror)
        return Ragged(out, height, width)
    rows = _taps(images.height, height, mode, border, mirror)
    columns = _taps(images.width, width, mode, border, mirror)
    turned = _gather_rows(images.pixels, *rows).transpose(2, 3)
    return Ragged(_gather_rows(turned, *columns).transpose(2, 3).contiguous(), height, width)


def _taps(size: Tensor, out: Tensor, mode: Tensor, border: int, mirror: bool) -> tuple[Tensor, Tensor]:
    """Which input positions, and with which weights, make each output position: (B,canvas,T) each."""
    at = torch.arange(-border, int(out.max()) + border)[None]
    size, out, mode = size[:, None], out[:, None], mode[:, None]
    at = reflected(at, out) if mirror else torch.minimum(at.clamp_min(0), out - 1)
    first, last = at * size // out, -(-(at + 1) * size // out)  # area: the input pixels that it touches
    window = (last - first).masked_fill(mode != 0, 0)
    count = max(4, int(window.max())) if bool((mode == 2).any()) else max(2, int(window.max()))
    step = torch.arange(count)
    area = (step < window[..., None]) / window.clamp_min(1)[..., None]
    source = (at + 0.5) * size / out - 0.5
    linear_source = source.clamp_min(0)
    linear = (1 - (linear_source - linear_source.floor())[..., None] - step).abs()
    linear = torch.where(step < 2, linear, 0.0)
    cubic = torch.where(step < 4, _cubic((source - source.floor())[..., None] + 1 - step), 0.0)
    kind = mode[..., None]
    start = torch.where(mode == 0, first, torch.where(mode == 1, linear_source, source - 1).floor().long())
    index = torch.minimum((start[..., None] + step).clamp_min(0), size[..., None] - 1)
    weight = torch.where(kind == 0, area, torch.where(kind == 1, linear, cubic))
    return index, weight.float()


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel."""
    d, a = distance.abs(), BICUBIC
    inner = ((a + 2) * d - (a + 3)) * d * d + 1
    outer = a * (((d - 5) * d + 8) * d - 4)
    return torch.where(d <= 1, inner, torch.where(d < 2, outer, 0.0))


def _gather_rows(images: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of rows: (B,C,H,W), (B,O,T) -> (B,C,O,W)."""
    batch, channels, height, width = images.shape
    out, taps = index.shape[1:]
    planes = torch.arange(batch * channels).view(batch, channels, 1, 1) * height
    rows = (planes + index[:, None]).view(-1, taps).to(images.device)
    weights = weight[:, None].expand(-1, channels, -1, -1).reshape(-1, taps).to(images.device, images.dtype)
    flat = images.reshape(batch * channels * height, width)
    return F.embedding_bag(rows, flat, per_sample_weights=weights, mode="sum").view(batch, channels, out, width)
