"""The fault target M_gt of a distorted image: pixel and feature differences fused by `ops.degradation_target`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from finpercep import ops
from finpercep.data.alignment import aligned_photo
from finpercep.ops.degradation_target import DEFAULT_ALPHA, DEFAULT_NORMALIZE, DEFAULT_SCALE

__all__ = ["ALPHA", "NORMALIZE", "SCALE", "fault_target", "fuse_target"]

# [open in the paper: alpha, Normalize] A fixed scale keeps severity comparable between images: a barely visible
# fault stays near 0 and an untouched photo is exactly 0, where min-max would stretch both to 1. Both numbers were
# chosen by eye on training photos: with more weight on the pixels, the map of lost or invented texture is salt and
# pepper that nobody sees, and with a larger scale a wall without its stones looks half right.
ALPHA, NORMALIZE, SCALE = DEFAULT_ALPHA, DEFAULT_NORMALIZE, DEFAULT_SCALE


@torch.no_grad()
def fault_target(
    photo: Tensor,
    distorted: Tensor,
    bank: Callable[[Tensor], Tensor] | None,
    *,
    alpha: float = ALPHA,
    scale: float = SCALE,
    aligned: bool | Tensor = True,
) -> Tensor:
    """M_gt of distorted images by a filter bank or other features.

    clamp((alpha·mean_c|photo - distorted| + (1-alpha)·(1 - cos(features))) / scale); exactly 0 where nothing near
    the pixel differs.

    Args:
        photo, distorted: (B,3,H,W), float in [0, 1]; one photo (1,3,H,W) may serve several distorted versions.
        bank: the features, images (B,3,H,W) -> (B,C,h,w): a `FilterBank` or what `features.kinds.open_features` gives;
            None where pixels alone decide.
        alpha: weight of the pixel difference.
        scale: the difference that counts as fully degraded.
        aligned: False for a pair that a camera took twice: pixels are compared as `aligned_photo` says; (B,) bool where
            some are.

    Returns:
        (B,1,H,W) in [0, 1], 1 = degraded.
    """
    pixels = _aligned(photo, distorted, aligned)
    features = (None, None) if bank is None else (bank(photo), bank(distorted))
    return fuse_target(pixels, distorted, *features, alpha=alpha, scale=scale)


def _aligned(photos: Tensor, distorted: Tensor, aligned: bool | Tensor) -> Tensor:
    """The photos, `aligned_photo` of a distorted version (B,3,H,W) where that is not aligned with its own."""
    same = [aligned] * len(distorted) if isinstance(aligned, bool) else aligned.tolist()
    if all(same):
        return photos
    if len(photos) == 1 and not any(same):
        return aligned_photo(photos[0], distorted)
    rows = zip(photos.expand_as(distorted), distorted[:, None], same, strict=True)
    return torch.cat([photo[None] if row else aligned_photo(photo, image) for photo, image, row in rows])


def fuse_target(
    photo: Tensor,
    distorted: Tensor,
    photo_features: Tensor | None,
    features: Tensor | None,
    *,
    alpha: float = ALPHA,
    normalize: str = NORMALIZE,
    scale: float = SCALE,
) -> Tensor:
    """M_gt of distorted images whose features are known: `ops.degradation_target`, one photo for several images.

    Args:
        photo: (B,3,H,W) or (1,3,H,W), float in [0, 1] or uint8.
        distorted: (B,3,H,W) of the same type.
        photo_features: (B,C,h,w) or (1,C,h,w); None, like `features`, where pixels alone decide.
        features: (B,C,h,w).
        alpha, normalize, scale: see `ops.degradation_target`.

    Returns:
        (B,1,H,W), float32.
    """
    return ops.degradation_target(
        photo.expand_as(distorted),
        distorted,
        None if photo_features is None or features is None else photo_features.expand_as(features),
        features,
        alpha=alpha,
        normalize=normalize,
        scale=scale,
    )
