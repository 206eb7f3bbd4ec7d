"""Arrays and tensors to (3, H, W) tensors: uint8, or float32 in [0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from finpercep.io.image_error import ImageError

if TYPE_CHECKING:
    import numpy as np

_TOLERANCE = 1e-4  # how far a float may leave [0, 1] through rounding before it is an error; then clamped


def from_numpy(array: np.ndarray, name: str) -> torch.Tensor:
    import numpy as np

    if array.ndim not in (2, 3):
        raise ImageError(f"{name}: expected an array (H, W) or (H, W, C), got shape {tuple(array.shape)}")
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype.kind not in "buf" or array.dtype.itemsize > (2 if array.dtype.kind in "bu" else 8):
        raise ImageError(f"{name}: expected uint8, uint16, bool or float values, got {array.dtype}")
    if array.shape[2] not in (1, 2, 3, 4):
        hint = "; move the channels last" if array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"{name}: expected an array (H, W, C) with 1 to 4 channels, got shape {array.shape}{hint}")
    # native byte order and positive strides, which torch needs
    array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return from_channels(torch.from_numpy(array).permute(2, 0, 1), name)


def from_channels(image: torch.Tensor, name: str) -> torch.Tensor:
    """Check a ``(C, H, W)`` tensor and bring it to three channels."""
    if image.ndim != 3:
        hint = "; score a batch as it is, not as one image" if image.ndim == 4 else ""
        raise ImageError(f"{name}: expected a tensor (C, H, W), got shape {tuple(image.shape)}{hint}")
    if image.shape[0] not in (1, 2, 3, 4):
        hint = "; move the channels first" if image.shape[2] in (1, 3, 4) else ""
        raise ImageError(
            f"{name}: expected a tensor (C, H, W) with 1 to 4 channels, got shape {tuple(image.shape)}{hint}"
        )
    if image.numel() == 0:
        raise ImageError(f"{name}: expected at least 1x1 pixels, got shape {tuple(image.shape)}")
    if image.dtype == torch.uint16:
        image = ((image.to(torch.int32) + 128) // 257).to(torch.uint8)
    elif image.dtype == torch.bool:
        image = image.to(torch.uint8) * 255
    elif image.is_floating_point():
        image = check_float(image.to(torch.float32), name)
    elif image.dtype != torch.uint8:
        raise ImageError(f"{name}: expected uint8, uint16, bool or float values, got {str(image.dtype)[6:]}")
    return _to_three_channels(image).contiguous()


def check_float(image: torch.Tensor, name: str) -> torch.Tensor:
    low, high = (float(v) for v in image.detach().aminmax())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # also catches NaN, which aminmax passes on
        if low != low or high != high:
            count = int(image.isnan().sum())
            raise ImageError(f"{name}: expected values in [0, 1], got NaN in {count} of {image.numel()} values")
        raise ImageError(f"{name}: expected values in [0, 1], got {low:.7g} to {high:.7g}{_advice(low, high)}")
    return image if low >= 0 and high <= 1 else image.clamp(0, 1)


def _advice(low: float, high: float) -> str:
    """What values of a range most likely need; empty where they are of no usual one."""
    if low >= -0.25 and high <= 1.25:
        return "; clamp(0, 1) them"
    if low >= -1.25 and high <= 1.25:
        return "; (x + 1) / 2 brings [-1, 1] there"
    if low >= 0 and high <= 255:
        return "; divide by 255"
    return ""


def _to_three_channels(image: torch.Tensor) -> torch.Tensor:
    channels = image.shape[0]
    if channels == 3:
        return image
    color = image[:1].expand(3, -1, -1) if channels < 3 else image[:3]
    if channels == 1:
        return color
    alpha = image[-1:]
    if image.dtype == torch.uint8:  # round((c·a + 255·(255 - a)) / 255) in integers
        mixed = color.to(torch.int32) * alpha + 255 * (255 - alpha.to(torch.int32))
        return ((mixed + 127) // 255).to(torch.uint8)
    return color * alpha + (1 - alpha)
