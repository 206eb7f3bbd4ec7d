"""The region swap that implants faults into a photo: I_syn = mask·I_SR + (1-mask)·I_GT."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["region_swap"]


def region_swap(photo: Tensor, distorted: Tensor, mask: Tensor) -> Tensor:
    """I_syn = mask·I_SR + (1-mask)·I_GT.

    Args:
        photo, distorted: (…,3,H,W), float in [0, 1], or both uint8.
        mask: (…,1,H,W): True, 1 as a float or 255 as uint8 takes `distorted`, and what lies between feathers the edge.
            A mask of floats with uint8 images is rounded to 255ths.

    Returns:
        The photo with the region of the other image; uint8 is mixed in integers, so that a reader can make it again
        from the stored images on any machine.

    Raises:
        ValueError: a mask of another type than bool, uint8 or floats, or images that are not of one type.
    """
    if photo.dtype != distorted.dtype or not (photo.is_floating_point() or photo.dtype == torch.uint8):
        raise ValueError(f"photo, distorted: expected both floats or both uint8, got {photo.dtype}, {distorted.dtype}")
    if mask.dtype == torch.bool:
        return torch.where(mask, distorted, photo)
    if not mask.is_floating_point() and mask.dtype != torch.uint8:
        raise ValueError(f"mask: expected bool, uint8 or floats, got {mask.dtype}")
    if photo.is_floating_point():
        mask = mask if mask.is_floating_point() else mask.to(photo.dtype) / 255
        return photo + mask * (distorted - photo)
    weight = ((mask * 255).round() if mask.is_floating_point() else mask).to(torch.int32)
    mixed = photo.to(torch.int32) * (255 - weight) + distorted.to(torch.int32) * weight
    return torch.div(mixed + 127, 255, rounding_mode="floor").to(torch.uint8)
