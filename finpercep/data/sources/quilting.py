"""A photo's finest detail, put together anew from pieces of its own: words of no language, leaves of another bush.

Example-based super-resolution after Freeman et al. (2002), with the photo as its own examples, also at a smaller scale
(Glasner et al., 2009): every pixel's detail is a photo's, and its place is wrong. What latent autoencoders and
diffusion models invent looks like this; faults of the spectrum do not.
"""

from __future__ import annotations

import math

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
    padded = F.pad(middle, (0, canvas[1] - base.shape[-1], 0, canvas[0] - base.shape[-2]), mode="replicate")
    places = [
        step * place.reshape(-1) for place in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    ]
    drawn = [(torch.rand(EXAMPLES, generator=generator) * (size - side + 1)).long() for size in examples[0].shape[-2:]]
    wanted, contrast = _keys(padded, places, side)
    offered, their_contrast = _keys(_middle(examples[0], sigma), drawn, side)
    lots = (torch.rand(len(wanted), generator=generator) * NEAREST).long()
    chosen = torch.cat(
        [
            _similar(wanted[part], offered, [place[part] for place in places], drawn, side if same else 0)
            .gather(1, lots[part, None])
            .squeeze(1)
            for part in torch.arange(len(wanted)).split(AT_ONCE)
        ]
    )
    pieces = _cut(examples[1], [place[chosen] for place in drawn], side)
    pieces = pieces * (contrast / their_contrast[chosen]).clamp(0.3, 3.0)[:, None, None, None]
    return _overlap(pieces, canvas, side, step)[:, : base.shape[-2], : base.shape[-1]]


def _middle(base: Tensor, sigma: float) -> Tensor:
    """The band above the detail, without color (1,H,W)."""
    return (base - gaussian_blur(base, 2 * sigma + 1)).mean(0, keepdim=True)


def _cut(image: Tensor, places: list[Tensor], side: int) -> Tensor:
    """Squares (N,C,side,side) at places (rows and columns of their corners)."""
    rows, columns = (place[:, None] + torch.arange(side) for place in places)
    return image[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


def _keys(middle: Tensor, places: list[Tensor], side: int) -> tuple[Tensor, Tensor]:
    """Keys (N, KEY²) of whole numbers up to 127, contrast divided out, and contrasts (N,).

    Products of such numbers add up exactly in fp32, in any order: the choice does not depend on the number of threads.
    """
    keys = F.adaptive_avg_pool2d(_cut(middle, places, side), KEY).flatten(1)
    contrast = keys.abs().mean(1) + FLAT
    return (keys / contrast[:, None] * 32).round().clamp(-127, 127), contrast


def _similar(wanted: Tensor, offered: Tensor, places: list[Tensor], drawn: list[Tensor], apart: int) -> Tensor:
    """Of each wanted key the `NEAREST` nearest among those offered (N, NEAREST), at least `apart` pixels away."""
    distance = offered.square().sum(1) - 2 * wanted @ offered.T
    rows, columns = ((place[:, None] - other).abs() < apart for place, other in zip(places, drawn, strict=True))
    distance = distance.long().masked_fill(rows & columns, 2**40)
    order = distance * EXAMPLES + torch.arange(EXAMPLES)  # ties: the first one drawn
    return order.topk(NEAREST, largest=False).indices


def _overlap(pieces: Tensor, canvas: tuple[int, int], side: int, step: int) -> Tensor:
    """Pieces (N,3,side,side) laid over each other every `step` pixels, blended where they overlap: (3, *canvas)."""
    ramp = torch.minimum(torch.arange(side) + 1, side - torch.arange(side)).clamp_max(side - step + 1).float()
    window = ramp[:, None] * ramp
    laid = torch.cat([pieces * window, window.expand(len(pieces), 1, -1, -1)], 1).flatten(1).T
    total = F.fold(laid[None], canvas, side, stride=step)[0]
    return total[:3] / total[3:]
