"""Embedded ICC profiles: colors that are not sRGB become sRGB, as browsers and viewers show them.

The conversion is LittleCMS's (through Pillow's `ImageCms`) with the perceptual intent, which is what browsers take. For
profiles of a matrix and curves (Display P3, Adobe RGB, ProPhoto) the intents are the same; colors that sRGB does not
have are clipped. A profile that moves no color by more than one level is sRGB, and its values stay as they are.
"""

from __future__ import annotations

import functools
import io
import logging
from typing import TYPE_CHECKING, Any

from finpercep.io.reasons import one_line, printable

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = ["CONVERSION", "Conversion", "conversion_of", "find_conversion"]

CONVERSION = "srgb-perceptual-1"
"""Names what is done to images with a profile; stored with what is made from them."""

_SAME = 1  # levels of 255 by which sRGB profiles of different makers differ in rounding
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_log = logging.getLogger(__name__)


class Conversion:
    """From the colors of one profile to sRGB.

    Args:
        transform: Pillow's, from `mode` to RGB.
        mode: "RGB", "L" or "CMYK".
    """

    def __init__(self, transform: Any, mode: str) -> None:
        self.transform, self.mode = transform, mode

    def __call__(self, picture: PILImage.Image) -> PILImage.Image:
        """`picture`, of 8 bits a channel, as RGB, or as RGBA where it is LA or RGBA: alpha stays."""
        converted = self.transform.apply(picture.convert(self.mode))
        if picture.mode in ("LA", "RGBA"):
            converted.putalpha(picture.getchannel("A"))
        return converted


def conversion_of(image: PILImage.Image, name: str) -> Conversion | None:
    """How to bring an image's colors to sRGB; None where they are sRGB or nothing is said about them.

    A profile that cannot be used, or that is one of other channels than the image's, is logged as one line that starts
    with `name`, and gives None.
    """
    try:
        return find_conversion(image)
    except Exception as error:  # Pillow's and LittleCMS's
        _warn(name, one_line(error))
        return None


def find_conversion(image: PILImage.Image) -> Conversion | None:
    """`conversion_of`, but a profile that cannot be used raises whatever Pillow and LittleCMS raise."""
    if "icc_profile" not in image.info or image.mode == "LAB":
        return None
    return _conversion(image.info["icc_profile"], _channels(image.mode))


def _channels(mode: str) -> str:
    """What an image's values are: "CMYK", "L" or "RGB"."""
    if mode == "CMYK":
        return "CMYK"
    return "L" if mode[0] in "1LIF" else "RGB"


@functools.lru_cache(maxsize=16)
def _conversion(profile: bytes | None, channels: str) -> Conversion | None:
    from PIL import ImageCms

    if not profile:  # what Pillow makes of one that it could not put together
        raise ValueError("an incomplete one")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space
    mode = _MODES.get(space, space)
    if mode != channels and (mode, channels) != ("RGB", "L"):  # gray images often have the profile of their RGB ones
        raise ValueError(f"one of {space.strip()} in an image of {'gray' if channels == 'L' else channels}")
    target = ImageCms.createProfile("sRGB")
    # LittleCMS would make a table of 33 grays, too coarse for dark ones
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    transform = ImageCms.buildTransform(source, target, mode, "RGB", ImageCms.Intent.PERCEPTUAL, flags)
    if mode != "CMYK":
        probe = _probe(mode)
        converted = transform.apply(probe)
        if _most(probe.convert("RGB"), converted) <= _SAME:
            return None
    return Conversion(transform, mode)


def _probe(mode: str) -> PILImage.Image:
    """Every gray, and of RGB a lattice of colors 17 levels apart."""
    from PIL import Image

    grays = bytes(range(256))
    if mode == "L":
        return Image.frombytes("L", (256, 1), grays)
    steps = range(0, 256, 17)
    colors = bytes(v for r in steps for g in steps for b in steps for v in (r, g, b))
    return Image.frombytes("RGB", (256, 17), bytes(v for gray in grays for v in (gray,) * 3) + colors)


def _most(first: PILImage.Image, second: PILImage.Image) -> int:
    """The largest difference of two RGB images."""
    from PIL import ImageChops

    return max(ImageChops.difference(first, second).tobytes())


@functools.lru_cache(maxsize=4096)
def _warn(name: str, reason: str) -> None:
    """Once for each file, however often it is read."""
    line = f"{name}: expected a color profile that can be used, got {reason}; its values are taken as sRGB"
    _log.warning("%s", printable(line))
