"""A low-resolution image and the photo behind it, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from finpercep.rl.batch import LATENT, scale_of

Images = tuple[Tensor, Tensor | None]
"""A low-resolution image (3,h,w), and the photo (3,H,W) where there is one; uint8."""


@dataclass
class Pair:
    """A low-resolution image, uint8 (3,h,w), and the photo (3,H,W) where it is known.

    Attributes:
        name: for messages.
        sides: (H, W) of the photo, or of what a generator will make.
        read: reads low-resolution image and photo.
        has_photo: whether there is a photo.
        extras: what belongs to the image besides, see `Batch`; latents bind it to the whole image.
        results: name -> results (3,H,W), uint8, of the low-resolution image as it is: "chosen" and "rejected".
        keep: the images stay in memory.
        aligned: whether photo and low-resolution image lie on the same pixels, see `data.Scene`.
        of: what pairs of one photo share: other crops of it, other labels; the name where that is all.
        files: what it is read from, and `place` which part of them, as JSON-able values; `root` is the set's folder.
    """

    name: str
    sides: tuple[int, int]
    read: Callable[[], Images] = field(repr=False)
    has_photo: bool = True
    extras: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict, repr=False)
    results: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict, repr=False)
    keep: bool = True
    aligned: bool = True
    of: str = ""
    files: Sequence[Path] = ()
    place: Sequence[Any] = ()
    root: Path = Path()
    _images: Images | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.of = self.of or self.name

    @property
    def fixed(self) -> bool:
        """Latents are given: the image is used whole, as it is."""
        return LATENT in self.extras

    @property
    def lr(self) -> Tensor:
        """The low-resolution image."""
        return self.images()[0]

    @property
    def photo(self) -> Tensor | None:
        """The photo; None where there is none."""
        return self.images()[1]

    def images(self) -> Images:
        """Low-resolution image and photo; where there is no room for all, each call reads their files."""
        found = self._images or self.read()
        self._images = found if self.keep else None
        return found


def check_scale(lr: tuple[int, int], photo: tuple[int, int], scale: int, names: str) -> None:
    """Refuse a photo that is not `scale` times as large as its low-resolution image.

    Args:
        lr, photo: (h, w) and (H, W).
        scale: what is expected.
        names: for messages: of the low-resolution image, a comma, and of the photo; or one name of both.

    Raises:
        ValueError: it is not; names the file.
    """
    found = scale_of((3, *lr), (3, *photo), names)
    if found != scale:
        raise ValueError(f"{names.partition(',')[0]}: expected a photo {scale} times larger, got {found} times")
