"""What masks a data set is made with: random shapes and segments of the photo (SAM, superpixels)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from finpercep.data.masks.shapes import SHAPES, random_shape
from finpercep.data.randomness import choose, uniform
from finpercep.data.sources.synthetic import gaussian_blur

RANDOM = "random"  # any of the shapes


class MaskKind(Protocol):
    """Draws masks on an image; `prepare` is called once per image, `draw` for each mask.

    `draw` returns (1,H,W) bool, or None where the image has no mask of this kind and of this area.
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def prepare(self, image: Tensor) -> Any: ...
    def draw(
        self, prepared: Any, image: Tensor, generator: torch.Generator, area: tuple[float, float]
    ) -> Tensor | None: ...


@dataclass(frozen=True)
class ShapeKind:
    """One of `mask_shapes.SHAPES`."""

    name: str
    fingerprint: str = "shapes-1"

    def prepare(self, image: Tensor) -> None:
        return None

    def draw(self, prepared: None, image: Tensor, generator: torch.Generator, area: tuple[float, float]) -> Tensor:
        height, width = image.shape[-2:]
        return random_shape(self.name, height, width, generator, area=area)


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
        area: tuple[float, float] = (0.03, 0.4),
        feathered: float = 0.25,
        feather: tuple[float, float] = (1.0, 5.0),
    ) -> None:
        self.kinds, self.area, self.feathered, self.feather = list(kinds), area, feathered, feather

    def prepare(self, image: Tensor) -> list[Any]:
        """What every kind needs to know of an image, uint8 (3,H,W)."""
        return [kind.prepare(image) for kind in self.kinds]

    def draw(self, prepared: list[Any], image: Tensor, generator: torch.Generator) -> DrawnMask:
        """One mask; a function of the image and the generator."""
        number = int(torch.randint(len(self.kinds), (), generator=generator))
        kind = self.kinds[number]
        hard = None if kind.name == RANDOM else kind.draw(prepared[number], image, generator, self.area)
        if hard is None:
            shape = ShapeKind(choose(list(SHAPES), generator))
            kind, hard = shape, shape.draw(None, image, generator, self.area)
        sigma = 0.0
        if torch.rand((), generator=generator) < self.feathered:
            sigma = uniform(*self.feather, generator)
        return DrawnMask(kind.name, kind.fingerprint, hard, _alpha(hard, sigma), sigma)


def _alpha(hard: Tensor, sigma: float) -> Tensor:
    soft = hard.float()
    if sigma:
        soft = gaussian_blur(soft.expand(3, -1, -1), sigma)[:1]
    return (soft * 255).round().to(torch.uint8)


MASK_KINDS = (*SHAPES, RANDOM, "superpixels", "sam:FILE", "sam-hf:ID")


def parse_masks(texts: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, value) of each ``--mask``.

    Raises:
        ValueError: none, or one that is not in `MASK_KINDS`.
    """
    if not texts:
        raise ValueError(f"mask: expected at least one of {', '.join(MASK_KINDS)}")
    parsed = []
    for text in texts:
        kind, _, value = text.partition(":")
        if not (kind in (*SHAPES, RANDOM, "superpixels") and not value) and not (kind in ("sam", "sam-hf") and value):
            raise ValueError(f"mask: expected one of {', '.join(MASK_KINDS)}, got {text!r}")
        parsed.append((kind, value))
    return parsed


def open_mask_kind(kind: str, value: str, *, device: str = "cpu", points_per_side: int = 32) -> MaskKind:
    """Load what a kind of masks needs; `points_per_side` is SAM's grid of prompts."""
    if kind in (*SHAPES, RANDOM):
        return ShapeKind(kind)
    from finpercep.data.masks.segments import HFSamKind, SamKind, SuperpixelKind

    if kind == "superpixels":
        return SuperpixelKind()
    if kind == "sam":
        return SamKind(value, device=device, points_per_side=points_per_side)
    return HFSamKind(value, device=device, points_per_side=points_per_side)
