"""Random masks and the region swap that implants faults into a photo."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def random_boxes(
    height: int,
    width: int,
    generator: torch.Generator,
    *,
    count: tuple[int, int] = (1, 3),
    side: tuple[float, float] = (0.12, 0.4),
) -> Tensor:
    """A mask (1,H,W) in {0, 1} of `count` (inclusive) boxes; each side is uniform in `side` × the image's side."""
    mask = torch.zeros(1, height, width)
    boxes = int(torch.randint(count[0], count[1] + 1, (), generator=generator))
    for _ in range(boxes):
        h = max(1, round(_uniform(*side, generator) * height))
        w = max(1, round(_uniform(*side, generator) * width))
        top = int(torch.randint(0, height - h + 1, (), generator=generator))
        left = int(torch.randint(0, width - w + 1, (), generator=generator))
        mask[:, top : top + h, left : left + w] = 1
    return mask


def random_blobs(
    height: int, width: int, generator: torch.Generator, *, area: tuple[float, float] = (0.03, 0.4)
) -> Tensor:
    """A mask (1,H,W) in {0, 1} of smooth random shapes that cover a fraction uniform in `area`."""
    cells = int(torch.randint(3, 9, (), generator=generator))
    noise = torch.rand(1, 1, cells, cells, generator=generator)
    field = F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=False)[0]
    threshold = torch.quantile(field.flatten(), 1 - _uniform(*area, generator))
    return (field > threshold).float()


def region_swap(photo: Tensor, distorted: Tensor, mask: Tensor) -> Tensor:
    """I_syn = mask·I_SR + (1-mask)·I_GT.

    Args:
        photo, distorted: (…,3,H,W), float in [0, 1].
        mask: (…,1,H,W) in [0, 1]; 1 takes `distorted`. Fractions feather the edge.
    """
    return photo + mask * (distorted - photo) if mask.is_floating_point() else torch.where(mask, distorted, photo)
