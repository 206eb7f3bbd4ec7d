"""Files opened by Pillow: their headers, without a pixel being decoded."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
from typing import TYPE_CHECKING

from finpercep.io.color_profiles import find_conversion
from finpercep.io.image_error import ImageError, reason

if TYPE_CHECKING:
    from PIL import Image as PILImage

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "TGA", "QOI", "AVIF", "HEIF")
ORIENTATION_TAG = 0x0112
# Pillow's pixel limit and Python's warning filters are process-wide: one thread at a time may change them.
PILLOW_STATE = threading.Lock()
if hasattr(os, "register_at_fork"):  # nobody holds it in a forked process; it is held for a file's header at most
    os.register_at_fork(
        before=PILLOW_STATE.acquire, after_in_parent=PILLOW_STATE.release, after_in_child=PILLOW_STATE.release
    )


def image_sides(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of what `load_image` makes of a file, by its header: no pixels are decoded.

    Raises:
        ImageError: no image; the message starts with the path.
    """
    from PIL import Image

    name = os.fspath(path)
    with opened(name) as image:
        try:
            # A PNG's own getexif() decodes the pixels to see whether EXIF follows them.
            if image.format == "PNG" and (late := _exif_behind_pixels(name)):
                image.info["exif"] = late
            turned = Image.Image.getexif(image).get(ORIENTATION_TAG, 1) >= 5
            width, height = _stored_size(image)
        except Exception as error:  # as of `_open`
            raise ImageError(f"{name}: expected an image file, got {reason(error, name)}") from error
        return (width, height) if turned else (height, width)


def is_converted(path: str | os.PathLike[str]) -> bool:
    """Whether `load_image` would convert a file's colors to sRGB; False where its header cannot be read."""
    try:
        with _open(os.fspath(path)) as image:
            return find_conversion(image) is not None
    except Exception:  # reported by whoever reads the image itself
        return False


def opened(name: str, content: bytes | None = None) -> PILImage.Image:
    """`_open` of a file that is there, or of a file's content, or an `ImageError`."""
    if content is None:
        _check_file(name)
    try:
        return _open(name if content is None else io.BytesIO(content))
    except Exception as error:  # Pillow's readers raise nearly every type on broken files
        raise ImageError(f"{name}: expected an image file, got {reason(error, name)}") from error


def _check_file(name: str) -> None:
    try:
        size = os.stat(name).st_size
    except FileNotFoundError as error:
        raise ImageError(f"{name}: expected an image file, got no such file") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: expected an image file, got {reason(error, name)}") from error
    if not os.path.isfile(name):
        kind = "a folder" if os.path.isdir(name) else "something that is not a regular file"
        raise ImageError(f"{name}: expected an image file, got {kind}")
    if size == 0:
        raise ImageError(f"{name}: expected an image file, got an empty file")


def _open(file: str | io.BytesIO) -> PILImage.Image:
    """Read the header only. Pillow's own bomb guard warns at 89 megapixels; ours replaces it."""
    from PIL import Image

    with PILLOW_STATE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.init()
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=[f for f in _FORMATS if f in Image.OPEN])
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _stored_size(image: PILImage.Image) -> tuple[int, int]:
    """Width and height before EXIF turns them; of a TIFF, `size` is turned already in some versions of Pillow."""
    tags = getattr(image, "tag_v2", None)
    return (int(tags[256]), int(tags[257])) if image.format == "TIFF" and tags is not None else image.size


def _exif_behind_pixels(name: str) -> bytes:
    """The EXIF of a PNG that stands behind its (first) picture, which is passed over; empty where there is none."""
    found, behind = b"", False
    with open(name, "rb") as file:
        file.seek(8)  # the signature
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if behind and kind in (b"IEND", b"fcTL"):  # the end, or the next picture of an animation
                break
            behind = behind or kind == b"IDAT"
            if behind and kind == b"eXIf":
                found = file.read(length)
                length = 0
            file.seek(length + 4, os.SEEK_CUR)  # and the checksum
    return found
