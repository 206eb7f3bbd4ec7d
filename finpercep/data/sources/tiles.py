"""Large images through models in overlapping tiles, blended where they overlap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from finpercep.models.tiles import overlapping_starts

__all__ = ["run_tiled"]


def run_tiled(model: Callable[[Tensor], Tensor], image: Tensor, *, scale: int, tile: int, overlap: int = 16) -> Tensor:
    """Apply a model that enlarges by `scale` tile by tile.

    Args:
        model: (1,3,h,w) -> (1,3,h·scale,w·scale).
        image: (1,3,H,W).
        tile: side of the tiles, input pixels; 0 gives the image whole.
        overlap: of neighboring tiles, input pixels; weights fall linearly across it.

    Returns: (1,3,H·scale,W·scale), fp32.
    """
    height, width = image.shape[-2:]
    if not tile or max(height, width) <= tile:
        return model(image).float()
    overlap = min(overlap, tile // 2)
    out = image.new_zeros(1, 3, height * scale, width * scale, dtype=torch.float32)
    total = image.new_zeros(1, 1, height * scale, width * scale, dtype=torch.float32)
    for top in overlapping_starts(height, tile, overlap):
        for left in overlapping_starts(width, tile, overlap):
            piece = image[..., top : top + tile, left : left + tile]
            made = model(piece).float()
            rows, columns = (_weights(side * scale, overlap * scale).to(made) for side in piece.shape[-2:])
            weight = rows[:, None] * columns
            place = (
                ...,
                slice(top * scale, (top + tile) * scale),
                slice(left * scale, (left + tile) * scale),
            )
            out[place] += made * weight
            total[place] += weight
    return out / total


def _weights(side: int, overlap: int) -> Tensor:
    """1 in the middle, falling to near 0 within `overlap` of both ends."""
    at = torch.arange(side) + 0.5
    return torch.minimum(at, side - at).div(max(1, overlap)).clamp(max=1)
