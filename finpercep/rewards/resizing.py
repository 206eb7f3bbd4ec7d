"""Images in another size, with a gradient that `torch.compile` lets through."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.compiler.disable  # torch 2.14 compiles no gradient of it for sizes that are not fixed
def resized(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """(B,C,H,W) as (B,C,h,w) for `size` (h, w), antialiased; the images themselves where that is their size."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode=mode, antialias=True, align_corners=False)
