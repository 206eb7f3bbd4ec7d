"""A photo's finest detail, put together anew from pieces of its own: words of no language, leaves of another bush.

Example-based super-resolution after Freeman et al. (2002), with the photo as its own examples, also at a smaller scale
(Glasner et al., 2009): every pixel's detail is a photo's, and its place is wrong. What latent autoencoders and
diffusion models invent looks like this; faults of the spectrum do not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.image_ops import gaussian_blur, resize
from finpercep.data.randomness import chance, integer, uniform32

__all__ = ["quilted"]

EXAMPLES = 4000
"""Pieces to choose from, drawn from all places of the photo."""
NEAREST = 4
"""One of so many of the most similar examples is taken, by chance: repeated texture shall not repeat too well."""
KEY = 5
"""Pieces are compared by KEY × KEY means of what is a little coarser than the detail."""
FLAT = 0.004
"""Contrast, as the mean size of a key's values, below which a piece counts as flat: one level of 255."""
AT_ONCE = 1024
"""Pieces of the result that are compared with all examples at once, which bounds the memory."""


def quilted(image: Tensor, generator: torch.Generator) -> Tensor:
    """The finest band exchanged for pieces of it from elsewhere, chosen by what is coarser around them.

    Half of the time the examples are of a smaller copy: as crisp as the photo at its best, in soft photos too.
    """
    sigma = uniform32(0.9, 2.4, generator)
    side = min(2 * integer(3, 7, generator), *image.shape[-2:])
    examples, kept = image, uniform32(0.0, 0.4, generator)
    if chance(0.5, generator):
        factor, kept = uniform32(0.45, 0.9, generator), 0.0
        height, width = (max(side, round(size * factor)) for size in image.shape[-2:])
        examples = resize(image, (height, width))
    base, band = _bands(image, sigma)
    invented = _quilt(base, _bands(examples, sigma), side, sigma, generator, same=examples is image)
    return (base + kept * band + math.sqrt(1 - kept**2) * invented).clamp(0, 1)


def _bands(image: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """What is coarser than sigma, and the detail."""
    base = gaussian_blur(image, sigma)
    return base, image - base


class _Pieces(NamedTuple):
    """Squares of an image: rows and columns of their corners, keys (N, KEY²) and contrasts, each (N,)."""

    rows: Tensor
    columns: Tensor
    keys: Tensor
    contrast: Tensor


def _quilt(
    base: Tensor, examples: tuple[Tensor, Tensor], side: int, sigma: float, generator: torch.Generator, *, same: bool
) -> Tensor:
    """Detail (3,H,W) for a base, of overlapping pieces of the examples' (their base and detail).

    `same`: both are of one image, whose pieces are not to be put back where they came from.
    """
    step = max(1, side * 2 // 3)
    rows, columns = (-(-(size - side) // step) + 1 for size in base.shape[-2:])
    canvas = ((rows - 1) * step + side, (columns - 1) * step + side)
    middle = _middle(base, sigma)
    middle = F.pad(middle, (0, canvas[1] - base.shape[-1], 0, canvas[0] - base.shape[-2]), mode="replicate")
    places = torch.meshgrid(step * torch.arange(rows), step * torch.arange(columns), indexing="ij")
    wanted = _pieces(middle, places[0].reshape(-1), places[1].reshape(-1), side)
    drawn = [(torch.rand(EXAMPLES, generator=generator) * (size - side + 1)).long() for size in examples[0].shape[-2:]]
    offered = _pieces(_middle(examples[0], sigma), drawn[0], drawn[1], side)

    chosen = _similar(wanted, offered, generator, apart=side if same else 0)
    gain = (wanted.contrast / offered.contrast[chosen]).clamp(0.3, 3.0)
    pieces = _cut(examples[1], offered.rows[chosen], offered.columns[chosen], side) * gain[:, None, None, None]
    return _overlap(pieces, canvas, side, step)[:, : base.shape[-2], : base.shape[-1]]


def _middle(base: Tensor, sigma: float) -> Tensor:
    """The band above the detail, without color (1,H,W)."""
    return (base - gaussian_blur(base, 2 * sigma + 1)).mean(0, keepdim=True)


def _cut(image: Tensor, rows: Tensor, columns: Tensor, side: int) -> Tensor:
    """Squares (N,C,side,side)."""
    rows, columns = (corner[:, None] + torch.arange(side) for corner in (rows, columns))
    return image[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


def _pieces(middle: Tensor, rows: Tensor, columns: Tensor, side: int) -> _Pieces:
    """Pieces with keys of whole numbers up to 127, contrast divided out.

    Products of such numbers add up exactly in fp32, in any order: the choice does not depend on the number of threads.
    """
    keys = F.adaptive_avg_pool2d(_cut(middle, rows, columns, side), KEY).flatten(1)
    contrast = keys.abs().mean(1) + FLAT
    return _Pieces(rows, columns, (keys / contrast[:, None] * 32).round().clamp(-127, 127), contrast)


def _similar(wanted: _Pieces, offered: _Pieces, generator: torch.Generator, *, apart: int) -> Tensor:
    """For each wanted piece the number (N,) of one of the `NEAREST` offered ones that are `apart` pixels away."""
    lots = (torch.rand((len(wanted.keys), 1), generator=generator) * NEAREST).long()
    chosen = []
    for part in torch.arange(len(lots)).split(AT_ONCE):
        distance = offered.keys.square().sum(1) - 2 * wanted.keys[part] @ offered.keys.T
        near = (wanted.rows[part, None] - offered.rows).abs() < apart
        near &= (wanted.columns[part, None] - offered.columns).abs() < apart
        order = distance.long().masked_fill(near, 2**40) * EXAMPLES + torch.arange(EXAMPLES)  # ties: the first drawn
        chosen.append(order.topk(NEAREST, largest=False).indices.gather(1, lots[part]).squeeze(1))
    return torch.cat(chosen)


def _overlap(pieces: Tensor, canvas: tuple[int, int], side: int, step: int) -> Tensor:
    """Pieces (N,3,side,side) laid over each other every `step` pixels, blended where they overlap: (3, *canvas)."""
    ramp = torch.minimum(torch.arange(side) + 1, side - torch.arange(side)).clamp_max(side - step + 1).float()
    window = ramp[:, None] * ramp
    laid = torch.cat([pieces * window, window.expand(len(pieces), 1, -1, -1)], 1).flatten(1).T
    total = F.fold(laid[None], canvas, side, stride=step)[0]
    return total[:3] / total[3:]
