"""LR consistency: whether a result, made small again, is the low-resolution image that it came from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finpercep.models import RewardOutput
from finpercep.models.inputs import as_stored
from finpercep.rewards.protocol import combined_fingerprint
from finpercep.rewards.resizing import resized

STRETCH = 1.25
"""How far the factors of height and width may differ: rounding of odd sides."""


class LRConsistency(nn.Module):
    """exp(-mean|down(result) - LR| / tolerance): 1 for a result that is its low-resolution image when made small.

    A reward without a reference cannot see that a result has nothing to do with its source; this one sees only that.
    Results are taken as an 8-bit file would hold them (see `as_stored`) and made small by anti-aliased bicubic
    resizing. Real low-resolution images were blurred, noised and compressed in ways that are not known here, so no
    result reaches 1: compare results of one image.

    Args:
        tolerance: mean difference, of values in [0, 1], at which the score is 1/e [open]: 0.02 is about five levels of
            255, what noise and compression commonly do.

    Raises:
        ValueError: a tolerance that is not positive.
    """

    takes = ("lr",)

    def __init__(self, tolerance: float = 0.02) -> None:
        super().__init__()
        if not tolerance > 0:
            raise ValueError(f"tolerance: expected more than 0, got {tolerance}")
        self.tolerance = float(tolerance)  # an integer of that value is the same reward

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the formula and its tolerance."""
        return combined_fingerprint("lr-consistency-v2", self.tolerance)

    def forward(self, images: Tensor, *, lr: Tensor | None = None) -> RewardOutput:
        """Scores (B,) in (0, 1] of results (B,3,H,W) against their low-resolution images `lr` (B,3,h,w); no map.

        Raises:
            ValueError: no `lr`, or one that is not (B,3,h,w), is larger than the results or has other proportions;
                images that are not float.
        """
        if lr is None:
            raise ValueError("lr: expected the low-resolution images (B,3,h,w), got none")
        sides = zip(lr.shape[-2:], images.shape[-2:], strict=True)
        if lr.dim() != 4 or lr.shape[:2] != images.shape[:2] or any(not 0 < low <= high for low, high in sides):
            raise ValueError(f"lr: expected (B,3,h,w), not larger than {tuple(images.shape)}, got {tuple(lr.shape)}")
        height, width = (high / low for low, high in zip(lr.shape[-2:], images.shape[-2:], strict=True))
        if not 1 / STRETCH < height / width < STRETCH:
            raise ValueError(
                f"lr: expected the proportions of the results {tuple(images.shape)}, got {tuple(lr.shape)}"
            )
        for name, values in (("images", images), ("lr", lr)):
            if not values.is_floating_point():
                raise ValueError(f"{name}: expected floats in [0, 1], got {values.dtype}")
        images = as_stored(images)
        small = resized(images, (lr.shape[-2], lr.shape[-1]), "bicubic").clamp(0, 1)
        difference = (small - lr.to(small)).abs().flatten(1).mean(1)
        return RewardOutput(torch.exp(-difference / self.tolerance), None)
