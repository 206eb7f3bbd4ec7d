"""Masks of superpixels: outlines of the photo without any weights."""

from __future__ import annotations

import torch
from torch import Tensor

from finpercep.data.randomness import integer, uniform

__all__ = ["SuperpixelKind"]


class SuperpixelKind:
    """Patches of superpixels (SLIC) around a random one.

    Args:
        count: superpixels on an image; finer ones follow outlines closer.
    """

    name = "superpixels"
    fingerprint = "slic-1"

    def __init__(self, count: int = 150) -> None:
        self.count = count
        try:
            import skimage.segmentation  # noqa: F401
        except ImportError as error:
            raise ImportError(f"superpixels: no scikit-image ({error}); pip install 'finpercep[data]'") from error

    def prepare(self, image: Tensor) -> Tensor:
        """Labels (H,W) from 0."""
        from skimage.segmentation import slic

        pixels = image.permute(1, 2, 0).contiguous().numpy()
        return torch.from_numpy(slic(pixels, n_segments=self.count, compactness=10, start_label=0)).long()

    def draw(
        self, prepared: Tensor, image: Tensor, generator: torch.Generator, area: tuple[float, float]
    ) -> Tensor | None:
        """The superpixels nearest to a random one, as many as cover a fraction uniform in `area` best."""
        height, width = prepared.shape
        size = torch.bincount(prepared.flatten()).double()
        ys = torch.arange(height).double()[:, None].expand(height, width).flatten()
        xs = torch.arange(width).double()[None].expand(height, width).flatten()
        y, x = (torch.bincount(prepared.flatten(), weights=at) / size for at in (ys, xs))
        start = integer(0, len(size) - 1, generator)
        nearest = torch.argsort((y - y[start]) ** 2 + (x - x[start]) ** 2, stable=True)
        covered = size[nearest].cumsum(0) / (height * width)
        wanted = uniform(*area, generator)
        fitting = torch.nonzero((covered >= area[0]) & (covered <= area[1])).flatten()
        if not len(fitting):
            return None
        best = int(fitting[(covered[fitting] - wanted).abs().argmin()])
        return torch.isin(prepared, nearest[: best + 1])[None]
