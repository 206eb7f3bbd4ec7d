"""The fault target M_gt of a distorted image: pixel and feature differences fused by `ops.degradation_target`."""

from __future__ import annotations

import torch
from torch import Tensor

from finpercep import ops
from finpercep.data.features.filter_bank import FilterBank

# [open in the paper: alpha, Normalize] A fixed scale keeps severity comparable between images: a barely visible
# fault stays near 0 and an untouched photo is exactly 0, where min-max would stretch both to 1. Both numbers were
# chosen by eye on training photos: with more weight on the pixels, the map of lost or invented texture is salt and
# pepper that nobody sees, and with a larger scale a wall without its stones looks half right.
ALPHA = 0.25
SCALE = 0.08


@torch.no_grad()
def fault_target(
    photo: Tensor, distorted: Tensor, bank: FilterBank, *, alpha: float = ALPHA, scale: float = SCALE
) -> Tensor:
    """M_gt (B,1,H,W) in [0, 1], 1 = degraded, of `distorted` against `photo`, both (B,3,H,W) float in [0, 1];
    one photo (1,3,H,W) may serve several distorted versions.

    clamp((alpha·mean_c|photo - distorted| + (1-alpha)·(1 - cos(features))) / scale); exactly 0 where nothing near
    the pixel differs.
    """
    features = bank(distorted)
    reference = bank(photo).expand_as(features)
    return ops.degradation_target(
        photo.expand_as(distorted),
        distorted,
        reference,
        features,
        alpha=alpha,
        normalize="scale",
        scale=scale,
    )
