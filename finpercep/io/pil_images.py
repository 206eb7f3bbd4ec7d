"""PIL images to (3, H, W) tensors: colors, transparency, EXIF, in strips of rows."""

from __future__ import annotations

import os
import threading
import warnings
from typing import TYPE_CHECKING

import torch

from finpercep.io.color_profiles import Conversion, conversion_of
from finpercep.io.image_arrays import check_float
from finpercep.io.image_error import ImageError, reason
from finpercep.io.image_files import ORIENTATION_TAG, PILLOW_STATE

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as PILImage

MAX_PIXELS = 2**28
"""Largest image that is read: 268 megapixels, 805 MB as uint8 RGB. Beyond it lie decompression bombs."""
_STRIP_PIXELS = 2**21
# Two threads that decode one image read from one file at two places. By the image's address, so that others decode
# beside it.
_decoding = tuple(threading.Lock() for _ in range(61))


def _anew() -> None:
    """In a forked process: whoever decodes in the other one is not there to give a lock back."""
    global _decoding
    _decoding = tuple(threading.Lock() for _ in range(61))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)


def from_pil(image: PILImage.Image, name: str) -> torch.Tensor:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: expected at least 1x1 pixels, got {width}x{height}")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: expected at most {MAX_PIXELS / 1e6:.0f} megapixels, "
            f"got {width}x{height} ({width * height / 1e6:.0f} megapixels)"
        )
    try:
        with _decoding[id(image) % len(_decoding)]:
            image.load()
        orientation = _orientation(image)  # after load: Pillow turns TIFF files itself and then drops the tag
        out = _strips_to_tensor(image, name)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: expected an image that fits in memory, got {width}x{height}") from error
    except Exception as error:
        raise ImageError(f"{name}: expected a readable image, got {reason(error, name)}") from error
    return _turn(out, orientation)


def _orientation(image: PILImage.Image) -> int:
    with PILLOW_STATE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(image.getexif().get(ORIENTATION_TAG, 1))
        except Exception:  # damaged EXIF does not make the photo unreadable
            return 1


def _turn(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """EXIF orientation 2..8 (TIFF 6.0, tag 274): mirror, then quarter turns."""
    turns, mirror = {
        2: (0, True),
        3: (2, False),
        4: (2, True),
        5: (1, True),
        6: (3, False),
        7: (3, True),
        8: (1, False),
    }.get(orientation, (0, False))
    if mirror:
        image = image.flip(2)
    return image.rot90(turns, (1, 2)).contiguous() if turns else image


def _strips_to_tensor(image: PILImage.Image, name: str) -> torch.Tensor:
    width, height = image.size
    out = torch.empty(3, height, width, dtype=torch.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    conversion = conversion_of(image, name)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        strip = image.crop((0, top, width, bottom))
        out[:, top:bottom] = torch.from_numpy(_strip_to_rgb(strip, name, conversion)).permute(2, 0, 1)
    return out


def _strip_to_rgb(strip: PILImage.Image, name: str, conversion: Conversion | None) -> np.ndarray:
    """One strip of any mode to uint8 ``(h, W, 3)`` in sRGB."""
    import numpy as np
    from PIL import Image

    picture = _eight_bit(strip, name)
    if conversion is not None:
        picture = conversion(picture)
    if picture.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


def _eight_bit(strip: PILImage.Image, name: str) -> PILImage.Image:
    """A strip with 8 bits a channel: LA or RGBA where it has transparency, else any mode without."""
    import numpy as np
    from PIL import Image

    mode = strip.mode
    if mode == "F":
        gray = check_float(torch.from_numpy(np.array(strip)), name)
        return Image.fromarray((gray * 255).round().to(torch.uint8).numpy())
    if mode.startswith("I"):
        return Image.fromarray(_integers_to_gray(strip, name))
    if "transparency" in strip.info or mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return strip.convert("LA" if mode in ("1", "L", "LA", "La") else "RGBA")
    return strip


def _integers_to_gray(strip: PILImage.Image, name: str) -> np.ndarray:
    import numpy as np

    values = np.array(strip).astype(np.int64)
    if strip.mode == "I" and (values.min() < 0 or values.max() > 65535):
        raise ImageError(
            f"{name}: expected 8-bit or 16-bit integers, got 32-bit ones from {values.min()} to {values.max()}"
        )
    gray = ((values + 128) // 257).astype(np.uint8)
    if isinstance(strip.info.get("transparency"), int):
        gray[values == strip.info["transparency"]] = 255
    return gray
