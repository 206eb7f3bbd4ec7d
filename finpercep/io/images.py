"""Images at the public doors: files, PIL images, arrays and tensors become ``(3, H, W)`` RGB tensors.

What is read: PNG, JPEG (and MPO), WebP, TIFF, BMP, GIF, PPM, JPEG 2000, TGA, QOI, AVIF where Pillow has it,
and HEIF where ``pillow_heif`` has registered it. Formats that start other programs (EPS) are never opened.

- Embedded color profiles are converted to sRGB (see `color_profiles`); without one, values are taken as sRGB.
- Transparency is composited on **white**, except what Pillow does not give: the color key of gray PNGs of 2 or 4 bits
  and of RGB PNGs of 16 bits, and the alpha of BMPs without a mask for it.
- EXIF orientation is applied. Of an animation, the first frame is taken.
- 16-bit values of gray files, arrays and tensors become 8-bit as ``round(v / 257)``; of color files Pillow gives the
  high byte, ``v // 256``. Float images must lie in [0, 1].
- At most `MAX_PIXELS` pixels. Everything stays uint8 and is converted in strips of rows, so the peak is
  Pillow's decoded image (4 bytes per pixel) plus the result (3 bytes; 6 where EXIF turns the image).
"""

from __future__ import annotations

import os
from typing import Any

import torch

from finpercep.io.image_arrays import from_channels, from_numpy
from finpercep.io.image_error import ImageError
from finpercep.io.image_files import image_sides, is_converted, opened
from finpercep.io.image_paths import IMAGE_SUFFIXES, expand_paths
from finpercep.io.pil_images import MAX_PIXELS, from_pil

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageError",
    "expand_paths",
    "image_sides",
    "is_converted",
    "load_image",
    "to_tensor",
]


def load_image(path: str | os.PathLike[str]) -> torch.Tensor:
    """Read a file as a uint8 ``(3, H, W)`` RGB tensor (see the module's description for what is done to it).

    Raises `ImageError`, starting with the path, for anything else: missing, empty, truncated or foreign
    files, more than `MAX_PIXELS` pixels, float images outside [0, 1], 32-bit integers.
    """
    name = os.fspath(path)
    with opened(name) as image:
        return from_pil(image, name)


def to_tensor(image: Any, *, name: str = "image") -> torch.Tensor:
    """Turn any accepted image into a ``(3, H, W)`` RGB tensor: uint8, or float32 in [0, 1].

    | given | accepted | result |
    |---|---|---|
    | path | what `load_image` reads | uint8 |
    | PIL image | every mode `load_image` reads | uint8 |
    | numpy array | ``(H, W)`` or ``(H, W, C)``; uint8, uint16, bool, or float in [0, 1] | uint8, float32 |
    | torch tensor | ``(C, H, W)``; the same types; stays on its device | uint8, float32 |

    C = 1 is gray, 2 gray + alpha, 3 RGB, 4 RGBA; alpha is composited on white. Floats may leave [0, 1] by
    1e-4 and are then clamped. The range check reads the values, so it waits for a GPU. Anything else raises
    `ImageError`, starting with `name`.
    """
    if isinstance(image, (str, os.PathLike)):
        return load_image(image)
    if isinstance(image, torch.Tensor):
        return from_channels(image, name)
    import numpy as np
    from PIL import Image

    if isinstance(image, Image.Image):
        return from_pil(image, name)
    if isinstance(image, np.ndarray):
        return from_numpy(image, name)
    raise ImageError(f"{name}: expected a path, PIL image, numpy array or tensor, got {type(image).__name__}")
