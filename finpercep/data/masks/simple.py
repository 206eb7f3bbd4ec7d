"""Random boxes and blobs as the evaluation and the training triplets draw them.

Data sets draw those of `shapes`, whose area does not depend on the kind. Both stay: published figures were measured
on the faults that these give, and stored data sets hold the others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.randomness import integer, uniform32

__all__ = ["random_blobs", "random_boxes"]


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
    boxes = integer(*count, generator)
    for _ in range(boxes):
        h = max(1, round(uniform32(*side, generator) * height))
        w = max(1, round(uniform32(*side, generator) * width))
        top = integer(0, height - h, generator)
        left = integer(0, width - w, generator)
        mask[:, top : top + h, left : left + w] = 1
    return mask


def random_blobs(
    height: int, width: int, generator: torch.Generator, *, area: tuple[float, float] = (0.03, 0.4)
) -> Tensor:
    """A mask (1,H,W) in {0, 1} of smooth random shapes that cover a fraction uniform in `area`."""
    cells = integer(3, 8, generator)
    noise = torch.rand(1, 1, cells, cells, generator=generator)
    field = F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=False)[0]
    threshold = torch.quantile(field.flatten(), 1 - uniform32(*area, generator))
    return (field > threshold).float()
