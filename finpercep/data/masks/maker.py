"""Masks of several kinds for one image, some of them with a soft edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finpercep.data.image_ops import gaussian_blur, to_uint8
from finpercep.data.masks.protocol import MaskKind
from finpercep.data.masks.shapes import RANDOM, SHAPES, ShapeKind
from finpercep.data.randomness import chance, choose, integer, uniform

__all__ = ["AREA", "FEATHER", "FEATHERED", "DrawnMask", "MaskMaker"]

AREA, FEATHERED, FEATHER = (0.03, 0.4), 0.25, (1.0, 5.0)  # defaults, see `MaskMaker`


class DrawnMask(NamedTuple):
    """`hard` (1,H,W) bool; `alpha` (1,H,W) uint8, what is mixed in: 0 or 255, between them at a feathered edge."""

    kind: str
    fingerprint: str
    hard: Tensor
    alpha: Tensor
    feather: float


class MaskMaker:
    """Masks of the kinds asked for.

    Each mask draws its kind among those given, all equally likely; "random" stands for any shape. Where
    the image has no mask of that kind (no segment of a fitting area), a random shape takes its place and is named so;
    no mask ever covers nothing or all.

    Args:
        kinds: at least one.
        area: range of the covered fraction, uniform for random shapes, a limit for segments.
        feathered: share of masks whose edge is blurred.
        feather: range of the blur's sigma, pixels.
    """

    def __init__(
        self,
        kinds: Sequence[MaskKind],
        *,
        area: tuple[float, float] = AREA,
        feathered: float = FEATHERED,
        feather: tuple[float, float] = FEATHER,
    ) -> None:
        self.kinds, self.area, self.feathered, self.feather = list(kinds), area, feathered, feather

    def prepare(self, image: Tensor) -> list[Any]:
        """What every kind needs to know of an image, uint8 (3,H,W)."""
        return [kind.prepare(image) for kind in self.kinds]

    def draw(self, prepared: list[Any], image: Tensor, generator: torch.Generator) -> DrawnMask:
        """One mask; a function of the image and the generator."""
        number = integer(0, len(self.kinds) - 1, generator)
        kind = self.kinds[number]
        hard = None if kind.name == RANDOM else kind.draw(prepared[number], image, generator, self.area)
        if hard is None:
            shape = ShapeKind(choose(list(SHAPES), generator))
            kind, hard = shape, shape.draw(None, image, generator, self.area)
        sigma = 0.0
        if chance(self.feathered, generator):
            sigma = uniform(*self.feather, generator)
        return DrawnMask(kind.name, kind.fingerprint, hard, _alpha(hard, sigma), sigma)


def _alpha(hard: Tensor, sigma: float) -> Tensor:
    soft = hard.float()
    if sigma:
        soft = gaussian_blur(soft.expand(3, -1, -1), sigma)[:1]
    return to_uint8(soft)
