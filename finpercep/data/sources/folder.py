"""Super-resolved images that lie in a folder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from finpercep.data.sources.protocol import SourceInput
from finpercep.io.images import ImageError, load_image

__all__ = ["FolderSource", "is_cut"]


@dataclass(frozen=True)
class FolderSource:
    """Results made elsewhere, one file per photo, of the photo's size or of that cut to a multiple of the scale.

    Attributes:
        folder: the folder or pattern; which files in it belong to which photos is said by `Photo.results`.
        scale: by which the results were enlarged.
    """

    folder: str
    name: str
    scale: int
    fingerprint: str = "files"
    needs_lr: bool = False

    def __call__(self, given: SourceInput) -> Tensor:
        path = given.photo.results[self.name]
        image = load_image(path)
        height, width = image.shape[1:]
        if not is_cut((height, width), given.size, self.scale):
            raise ImageError(
                f"{path}: expected {given.size[1]}x{given.size[0]} like {given.photo.gt}, got {width}x{height}"
            )
        return given.region.of(image)


def is_cut(sides: tuple[int, int], size: tuple[int, int], scale: int) -> bool:
    """Whether a result is of the photo's `size`, or of that cut to a multiple of the scale; both are height and width.

    Where the pixels of any other lie in the photo is not known: it may be cut elsewhere, or resized.
    """
    return all(side in (full, full // scale * scale) for side, full in zip(sides, size, strict=True))
