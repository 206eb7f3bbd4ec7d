"""Where super-resolved images come from: results made elsewhere, models, and built-in faults without weights.

A source is named on the command line as ``KIND:[NAME=]VALUE``; see `parse_source`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.dataset.pairs import Photo
from finpercep.data.sources.synthetic import SYNTHETIC_SOURCES, synthetic_source
from finpercep.io.images import ImageError, load_image


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
        fingerprint: changes when the results would.
        needs_lr: whether `SourceInput.lr` must be there.
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def needs_lr(self) -> bool: ...
    def __call__(self, given: SourceInput) -> Tensor: ...


@dataclass(frozen=True)
class FolderSource:
    """Results made elsewhere, one file per photo, of the photo's size or of that cut to a multiple of the scale."""

    name: str
    fingerprint: str = "files"
    needs_lr: bool = False

    def __call__(self, given: SourceInput) -> Tensor:
        path = given.photo.results[self.name]
        image = load_image(path)
        height, width = image.shape[1:]
        region = given.region
        whole = (height, width) == given.size
        cut = region.top + region.height <= height <= given.size[0] and (
            region.left + region.width <= width <= given.size[1]
        )
        if not whole and not (cut and _nearly(image, given.size)):
            raise ImageError(
                f"{path}: expected {given.size[1]}x{given.size[0]} like {given.photo.gt}, got {width}x{height}"
            )
        return given.region.of(image)


def _nearly(image: Tensor, size: tuple[int, int]) -> bool:
    """Whether only the rest of a division by the scale (at most 16) is missing at the right and the bottom."""
    return all(0 <= full - side < 16 for full, side in zip(size, image.shape[1:], strict=True))


@dataclass(frozen=True)
class BuiltinSource:
    """One of `SYNTHETIC_SOURCES`: faults made from the photo alone."""

    name: str
    fingerprint: str = "builtin-1"
    needs_lr: bool = False

    def __call__(self, given: SourceInput) -> Tensor:
        return to_uint8(synthetic_source(self.name, given.gt.float() / 255, given.generator))


@dataclass(frozen=True)
class BicubicSource:
    """The low-resolution image, enlarged: what every model is compared with."""

    name: str = "bicubic"
    fingerprint: str = "builtin-1"
    needs_lr: bool = True

    def __call__(self, given: SourceInput) -> Tensor:
        assert given.lr is not None
        low = given.lr[None].float() / 255
        return to_uint8(F.interpolate(low, given.gt.shape[1:], mode="bicubic", align_corners=False)[0].clamp(0, 1))


BUILTIN = ("bicubic", *sorted(SYNTHETIC_SOURCES))


class SourceSpec(NamedTuple):
    """``KIND:[NAME=]VALUE`` taken apart; `value` is a folder, pattern, file, hub id or built-in name."""

    kind: str
    name: str
    value: str


def parse_source(text: str) -> list[SourceSpec]:
    """The sources that one ``--sr`` names.

    - ``folder:NAME=DIR`` (or a pattern): results made elsewhere, matched by name (`pairs.find_images`);
    - ``spandrel:[NAME=]FILE``: a checkpoint of any architecture that spandrel knows;
    - ``diffusers:[NAME=]ID``: an upscaling pipeline, a folder or a hub id;
    - ``builtin:NAME``: ``bicubic`` or one of `SYNTHETIC_SOURCES`; ``builtin:all`` is each of them.

    Raises:
        ValueError: another kind, an unknown built-in, or a folder without a name.
    """
    kind, _, rest = text.partition(":")
    if kind not in ("folder", "spandrel", "diffusers", "builtin") or not rest:
        raise ValueError(f"sr: expected folder:NAME=DIR, spandrel:FILE, diffusers:ID or builtin:NAME, got {text!r}")
    if kind == "builtin":
        if rest not in (*BUILTIN, "all"):
            raise ValueError(f"sr: expected builtin:NAME with one of {', '.join(BUILTIN)} or all, got {text!r}")
        return [SourceSpec(kind, name, name) for name in (BUILTIN if rest == "all" else [rest])]
    match = re.match(r"([\w.+-]+)=(.+)", rest)
    if match:
        return [SourceSpec(kind, match[1], match[2])]
    if kind == "folder":
        raise ValueError(f"sr: expected folder:NAME=DIR, got {text!r}")
    return [SourceSpec(kind, re.sub(r"[^\w.+-]", "_", Path(rest).stem if kind == "spandrel" else rest), rest)]


def parse_sources(texts: Sequence[str]) -> list[SourceSpec]:
    """All ``--sr`` in order.

    Raises:
        ValueError: none, or two with one name.
    """
    specs = [spec for text in texts for spec in parse_source(text)]
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not specs or twice:
        raise ValueError(f"sr: expected sources with different names, got {twice or 'none'}")
    return specs


def open_source(spec: SourceSpec, *, scale: int, device: str = "cpu", tile: int = 256, steps: int = 50) -> Source:
    """Load what a source needs.

    Args:
        scale: enlargement that models must have.
        tile: side of the tiles that models see, in low-resolution pixels; 0 gives them whole images.
        steps: denoising steps of diffusers pipelines.
    """
    if spec.kind == "folder":
        return FolderSource(spec.name)
    if spec.kind == "builtin":
        return BicubicSource() if spec.name == "bicubic" else BuiltinSource(spec.name)
    from finpercep.data.sources.models import DiffusersSource, SpandrelSource

    if spec.kind == "spandrel":
        return SpandrelSource(os.path.expanduser(spec.value), spec.name, scale=scale, device=device, tile=tile)
    return DiffusersSource(spec.value, spec.name, scale=scale, device=device, tile=tile, steps=steps)


def to_uint8(image: Tensor) -> Tensor:
    """Float in [0, 1] to uint8, rounded."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)
