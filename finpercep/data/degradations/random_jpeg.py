"""JPEG as a view of `finpercep.rewards.Augmented`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finpercep.data.degradations.diff_jpeg import jpeg_each
from finpercep.data.randomness import uniform

__all__ = ["RandomJPEG"]


@dataclass(frozen=True)
class RandomJPEG:
    """JPEG of a batch at one quality, drawn uniformly; its gradient passes the quantization, see `jpeg_each`.

    Attributes:
        lowest, highest: quality, 1 to 100.

    Raises:
        ValueError: qualities that are not in order, or beyond 1 to 100.
    """

    lowest: float = 70
    highest: float = 95

    def __post_init__(self) -> None:
        if not 1 <= self.lowest <= self.highest <= 100:
            raise ValueError(f"quality: expected 1 <= lowest <= highest <= 100, got {self.lowest} and {self.highest}")

    @property
    def fingerprint(self) -> str:
        return f"jpeg-{self.lowest:g}-{self.highest:g}"

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Images (B,3,H,W) in [0, 1] to those; the same seed draws the same quality."""
        quality = uniform(self.lowest, self.highest, torch.Generator().manual_seed(seed))
        return jpeg_each(images, images.new_full((len(images),), quality), differentiable=True)
