"""Pairs that a camera took twice: photo and result differ by a fraction of a pixel and a few levels of color, which
nobody sees and which is no fault."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SHIFT", "aligned_photo"]

SHIFT = 1.0
"""How far photo and result may be apart, in pixels."""
LEVELS = 4 / 255
"""How far their colors may be apart."""
STEP = 0.5


def aligned_photo(photo: Tensor, distorted: Tensor, *, shift: float = SHIFT, levels: float = LEVELS) -> Tensor:
    """The photo as it would be in the place of a distorted version of it, to compare the pixels of both.

    At each pixel the shift of the photo, in steps of half a pixel, whose neighborhood is nearest to that of the
    distorted version; then differences up to `levels` are taken away.

    Args:
        photo: (3,H,W), float in [0, 1].
        distorted: (B,3,H,W).
        shift: the largest shift along either side, pixels; 0 leaves the photo in its place.
        levels: difference of a color channel, in [0, 1], that does not count.

    Returns:
        (B,3,H,W), between the photo and the distorted version at every pixel where no shift helps.
    """
    versions = _shifted(photo, shift)  # [V, 3, H, W]
    nearest = []
    for image in distorted:
        distance = (versions - image).abs().mean(1, keepdim=True)
        distance = F.avg_pool2d(F.pad(distance, [2] * 4, mode="replicate"), 5, 1)
        best = distance.argmin(0, keepdim=True).expand(1, *photo.shape)  # [1, 3, H, W]
        nearest.append(versions.gather(0, best)[0])
    aligned = torch.stack(nearest)
    return distorted + F.softshrink(aligned - distorted, levels)


def _shifted(photo: Tensor, shift: float) -> Tensor:
    """The photo moved by every pair of multiples of STEP up to `shift`, itself first: (V,3,H,W)."""
    height, width = photo.shape[-2:]
    count = int(shift / STEP)
    moves = [STEP * i for i in range(-count, count + 1)]
    pairs = sorted(((dy, dx) for dy in moves for dx in moves), key=lambda pair: (abs(pair[0]) + abs(pair[1]), pair))
    sides = (torch.arange(side, device=photo.device) for side in (height, width))
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    grids = []
    for dy, dx in pairs:
        y, x = (rows + dy) * 2 / max(height - 1, 1) - 1, (columns + dx) * 2 / max(width - 1, 1) - 1
        grids.append(torch.stack([x, y], -1).to(photo.dtype))
    moved = F.grid_sample(
        photo.expand(len(pairs), -1, -1, -1), torch.stack(grids), "bicubic", "border", align_corners=True
    )
    moved[0] = photo
    return moved.clamp(0, 1)
