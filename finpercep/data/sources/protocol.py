"""What a source of super-resolved images is, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Photo", "Region", "Source", "SourceInput"]


@dataclass(frozen=True)
class Photo:
    """One photo of the data set to be.

    Attributes:
        id: what its files have in common, e.g. "0001" or "city/0001".
        gt: the photo's file.
        results: source -> file of that source's result.
        lr: file of its low-resolution version, where it was given.
    """

    id: str
    gt: Path
    results: Mapping[str, Path] = field(default_factory=dict)
    lr: Path | None = None


class Region(NamedTuple):
    """A rectangle of a photo, pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Tensor, scale: int = 1) -> Tensor:
        """This part of an image (…,H,W) that is `scale` times smaller than the photo."""
        top, left, height, width = (side // scale for side in self)
        return image[..., top : top + height, left : left + width]


@dataclass(frozen=True)
class SourceInput:
    """What a source may look at.

    Attributes:
        photo: the files.
        size: (height, width) of the whole photo as it was read.
        region: the part of it that `gt` is.
        gt: uint8 (3,H,W).
        lr: the low-resolution version, uint8 (3,H/scale,W/scale), for sources that need it.
        generator: this photo's and source's own random numbers.
    """

    photo: Photo
    size: tuple[int, int]
    region: Region
    gt: Tensor
    lr: Tensor | None
    generator: torch.Generator


class Source(Protocol):
    """Makes a super-resolved image of the size of `gt`, uint8 (3,H,W).

    Attributes:
        name: as it appears in the data set.
        fingerprint: changes when the results would. What stands behind `KIND:` is added to it by `open_source`.
        needs_lr: whether `SourceInput.lr` must be there.
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def needs_lr(self) -> bool: ...
    def __call__(self, given: SourceInput) -> Tensor: ...
