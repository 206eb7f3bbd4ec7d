"""What is done to images here, there and everywhere in the data: JPEG, resizing, blur, rounding to 8 bits."""

from __future__ import annotations

import io

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gaussian_blur", "jpeg", "resize", "to_uint8"]


def jpeg(image: Tensor, quality: int) -> Tensor:
    """Round trip of a float image (3,H,W) in [0, 1] through JPEG at `quality` (1–95), by Pillow."""
    import numpy as np
    from PIL import Image

    pixels = to_uint8(image).permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=int(quality))
    decoded = np.asarray(Image.open(buffer))
    return torch.from_numpy(decoded.copy()).permute(2, 0, 1).float() / 255


def resize(image: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Resize (3,H,W) or (1,H,W) to `size`, anti-aliased when it shrinks, kept in [0, 1]."""
    antialias = mode in ("bilinear", "bicubic")
    corners = False if antialias else None
    return F.interpolate(image[None], size, mode=mode, align_corners=corners, antialias=antialias)[0].clamp(0, 1)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (3,H,W) or (B,3,H,W), borders reflected."""
    radius = min(max(1, round(3 * sigma)), min(image.shape[-2:]) - 1)
    if radius < 1:
        return image
    axis = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (axis / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(image.reshape(-1, *image.shape[-3:]), [radius] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3).reshape(image.shape)


def to_uint8(image: Tensor) -> Tensor:
    """Float in [0, 1] to uint8, rounded."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)
