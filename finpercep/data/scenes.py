"""Scenes: a photo (`gt`) and what super-resolution models made of its low-resolution version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from finpercep.io.images import image_sides, load_image

__all__ = ["Scene", "StoredSample", "split_dev", "spread"]

T = TypeVar("T")


class StoredSample(NamedTuple):
    """A row of a data set: uint8 images (3,H,W), mask and targets (1,H,W), and its other columns."""

    gt: torch.Tensor
    sr: torch.Tensor
    syn: torch.Tensor
    mask: torch.Tensor
    target_syn: torch.Tensor
    target_sr: torch.Tensor
    row: dict[str, Any]


@dataclass
class Scene:
    """One photo and its super-resolved versions; images load on first use and stay in memory as uint8 (3,H,W).

    Attributes:
        id: the scene's name.
        gt_path: the photo.
        sr_paths: source name -> super-resolved image of the same size.
        aligned: whether photo and results lie on the same pixels; a camera that took a scene twice moved in between.
    """

    id: str
    gt_path: Path
    sr_paths: dict[str, Path]
    aligned: bool = field(default=True, kw_only=True)
    _images: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def sources(self) -> list[str]:
        return list(self.sr_paths)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the photo, by its file's header.

        Raises:
            ImageError: no image.
        """
        return image_sides(self.gt_path)

    @property
    def gt(self) -> torch.Tensor:
        """The photo, uint8 (3,H,W)."""
        return self._load("", self.gt_path)

    def sr(self, source: str) -> torch.Tensor:
        """The result of `source`, uint8 (3,H,W), of the photo's size.

        Raises:
            ValueError: its size is not the photo's.
        """
        image = self._load(source, self.sr_paths[source])
        if image.shape != self.gt.shape:
            raise ValueError(
                f"{self.sr_paths[source]}: expected {tuple(self.gt.shape)} like {self.gt_path.name}, "
                f"got {tuple(image.shape)}"
            )
        return image

    def only(self, source: str) -> Scene:
        """The same photo with the result of one of its sources alone; images in memory are shared."""
        return replace(self, sr_paths={source: self.sr_paths[source]})

    def place(self) -> list[Any]:
        """Where inside its files the scene lies, as JSON-able values; nothing, where each file is one image."""
        return []

    def draw(self, generator: torch.Generator) -> StoredSample | None:
        """A sample of one of `sources` that is stored with its fault and targets; None where none are."""
        return None

    def _load(self, key: str, path: Path) -> torch.Tensor:
        if key not in self._images:
            self._images[key] = load_image(path)
        return self._images[key]


def split_dev(scenes: Sequence[Scene], every: int) -> tuple[list[Scene], list[Scene]]:
    """(fit, dev): every n-th photo is dev, so that a recipe can be chosen without looking at `val`; 0 means none."""
    photos = list(dict.fromkeys(photo_of(scene.id) for scene in scenes))
    held = set(photos[every - 1 :: every]) if every else set()
    parts: tuple[list[Scene], list[Scene]] = [], []
    for scene in scenes:
        parts[photo_of(scene.id) in held].append(scene)
    return parts


def photo_of(scene: str) -> str:
    """The photo that a scene is of, by its id: crops of one photo in a data set are "PHOTO|TOP,LEFT"."""
    return scene.rpartition("|")[0] or scene


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly over all of them: where sets stand one after the other, some of each."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]
