"""What every model expects of a batch of images."""

from __future__ import annotations

import torch
from torch import Tensor

from finpercep.models.precision import at_least_float32
from finpercep.ops import transformed

PREPROCESSING = "rgb01-replicate-v1"
"""Names what happens between pixels and encoder; part of the fingerprint. This one takes floats as they are."""
STORED_PREPROCESSING = "rgb8-replicate-v2"
"""This one takes of float images what an 8-bit file of them would hold: see `as_stored`."""


def known_preprocessing(name: str | None) -> str:
    """The preprocessing of that name; None is the first one, which files without the key have.

    Raises:
        ValueError: another name.
    """
    if name not in (None, PREPROCESSING, STORED_PREPROCESSING):
        raise ValueError(
            f"preprocessing: expected {PREPROCESSING} or {STORED_PREPROCESSING}, got {name!r}; "
            "it may need a newer finpercep"
        )
    return name or PREPROCESSING


def as_stored(images: Tensor) -> Tensor:
    """What an 8-bit file of float images would hold: clamped to [0, 1] and rounded, in float32 or float64.

    What no file holds moves no score. The gradient passes the rounding unchanged (straight-through), in forward mode
    too, and is 0 where the image is outside of [0, 1].
    """
    clamped = images.to(at_least_float32(images.dtype)).clamp(0, 1)
    # Forward-mode derivatives and transforms of torch.func differentiate what does not say `requires_grad`.
    if not (torch.is_grad_enabled() and images.requires_grad) and not transformed():
        return clamped.mul_(255).round_().div_(255)  # in place: fresh memory costs more than the arithmetic here
    rounded = clamped.detach().mul(255).round().div(255)
    return rounded + (clamped - clamped.detach())  # the difference is 0: the values are those of the file


def check_images(images: Tensor, weights: Tensor) -> None:
    """Check a batch (B,3,H,W) without reading its values, which would stall a GPU.

    Args:
        weights: a parameter of the model: its device and its type are what images must have; of half precision, its
            type or float32.

    Raises:
        ValueError: wrong rank or channels, no pixels, or another device than the model's.
        TypeError: not a tensor, not a floating-point tensor, or (without autocast) another dtype than the model's
            and, of a model in half precision, than float32.
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
    allowed = {weights.dtype, at_least_float32(weights.dtype)}
    if images.dtype not in allowed and not torch.is_autocast_enabled(images.device.type):
        also = "" if len(allowed) == 1 else " or torch.float32"
        raise TypeError(f"images: expected {weights.dtype} like the model{also}, got {images.dtype}")
