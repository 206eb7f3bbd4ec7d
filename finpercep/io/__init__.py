"""Images, pictures, whole-or-absent files, saved models by name, fingerprints, HTML pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

if TYPE_CHECKING:
    from finpercep.io.images import ImageError, expand_paths, load_image, to_tensor
    from finpercep.io.pictures import as_picture, colorize, overlay, save_image

__all__ = [
    "ImageError",
    "as_picture",
    "colorize",
    "expand_paths",
    "load_image",
    "overlay",
    "save_image",
    "to_tensor",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        **dict.fromkeys(("ImageError", "expand_paths", "load_image", "to_tensor"), "finpercep.io.images"),
        **dict.fromkeys(("as_picture", "colorize", "overlay", "save_image"), "finpercep.io.pictures"),
    },
)
