"""What every model expects of a batch of images."""

from __future__ import annotations

import torch
from torch import Tensor

PREPROCESSING = "rgb01-replicate-v1"
"""Names what happens between pixels and encoder; part of the fingerprint."""


def check_images(images: Tensor, weights: Tensor) -> None:
    """Check a batch (B,3,H,W) without reading its values, which would stall a GPU.

    Args:
        weights: a parameter of the model: its device and type are what images must have.

    Raises:
        ValueError: wrong rank or channels, no pixels, or another device than the model's.
        TypeError: not a tensor, not a floating-point tensor, or (without autocast) another dtype than the model's.
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"images: expected a tensor (B,3,H,W), got {type(images).__name__}; "
            "use score() for paths, PIL images and arrays"
        )
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images: expected (B,3,H,W), got {tuple(images.shape)}")
    if images.shape[-2] < 1 or images.shape[-1] < 1:
        raise ValueError(f"images: expected at least 1x1 pixels, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"images: expected float in [0, 1], got {images.dtype}; use score() for uint8 images")
    if images.device != weights.device:
        raise ValueError(f"images: expected on {weights.device} like the model, got {images.device}")
    if images.dtype != weights.dtype and not torch.is_autocast_enabled(images.device.type):
        raise TypeError(f"images: expected {weights.dtype} like the model, got {images.dtype}")
