"""Super-resolved images that lie in a folder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from finpercep.data.sources.protocol import SourceInput
from finpercep.io.images import ImageError, load_image

__all__ = ["FolderSource"]


@dataclass(frozen=True)
class FolderSource:
    """Results made elsewhere, one file per photo, of the photo's size or of that cut to a multiple of the scale.

    Attributes:
        folder: the folder or pattern; which files in it belong to which photos is said by `Photo.results`.
    """

    folder: str
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
