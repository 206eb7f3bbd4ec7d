"""Images at the public doors: files, PIL images, arrays and tensors become ``(3, H, W)`` RGB tensors.

What is read: PNG, JPEG (and MPO), WebP, TIFF, BMP, GIF, PPM, JPEG 2000, TGA, QOI, AVIF where Pillow has it,
and HEIF where ``pillow_heif`` has registered it. Formats that start other programs (EPS) are never opened.

- Embedded color profiles are converted to sRGB (see `color_profiles`); without one, values are taken as sRGB.
- Transparency is composited on **white**.
- EXIF orientation is applied. Of an animation, the first frame is taken.
- 16-bit values of gray files, arrays and tensors become 8-bit as ``round(v / 257)``; of color files Pillow gives the
  high byte, ``v // 256``. Float images must lie in [0, 1].
- At most `MAX_PIXELS` pixels. Everything stays uint8 and is converted in strips of rows, so the peak is
  Pillow's decoded image (4 bytes per pixel) plus the result (3 bytes; 6 where EXIF turns the image).
"""

from __future__ import annotations

import glob
import os
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finpercep.io.color_profiles import Conversion, conversion_of, find_conversion

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as PILImage

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "ImageError", "expand_paths", "is_converted", "load_image", "to_tensor"]

MAX_PIXELS = 2**28
"""Largest image that is read: 268 megapixels, 805 MB as uint8 RGB. Beyond it lie decompression bombs."""

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *(
            "png",
            "jpg",
            "jpeg",
            "jfif",
            "mpo",
            "webp",
            "tif",
            "tiff",
            "bmp",
            "gif",
            "ppm",
            "pgm",
            "pbm",
            "pnm",
        ),
        *("jp2", "tga", "qoi", "avif", "heic", "heif"),
    )
)
"""What counts as an image inside a folder. A file named by itself or by a glob is always tried."""

_FORMATS = "PNG JPEG MPO WEBP TIFF BMP GIF PPM JPEG2000 TGA QOI AVIF HEIF".split()  # noqa: SIM905
_TOLERANCE = 1e-4  # how far a float may leave [0, 1] through rounding before it is an error; then clamped
_STRIP_PIXELS = 2**21
_ORIENTATION_TAG = 0x0112
# Pillow's pixel limit and Python's warning filters are process-wide: one thread at a time may change them.
_pillow_state = threading.Lock()
# Two threads that decode one image read from one file at two places. By the image's address, so that others decode
# beside it.
_decoding = tuple(threading.Lock() for _ in range(61))


class ImageError(ValueError):
    """An unusable image. The message is one line that starts with the file name or the argument."""


def load_image(path: str | os.PathLike[str]) -> torch.Tensor:
    """Read a file as a uint8 ``(3, H, W)`` RGB tensor (see the module's description for what is done to it).

    Raises `ImageError`, starting with the path, for anything else: missing, empty, truncated or foreign
    files, more than `MAX_PIXELS` pixels, float images outside [0, 1], 32-bit integers.
    """
    name = os.fspath(path)
    with _opened(name) as image:
        return _from_pil(image, name)


def image_sides(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of what `load_image` makes of a file, by its header: no pixels are decoded.

    Raises:
        ImageError: no image; the message starts with the path.
    """
    from PIL import Image

    name = os.fspath(path)
    with _opened(name) as image:
        try:
            # A PNG's own getexif() decodes the pixels to see whether EXIF follows them.
            if image.format == "PNG" and (late := _exif_behind_pixels(name)):
                image.info["exif"] = late
            turned = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1) >= 5
            width, height = _stored_size(image)
        except Exception as error:  # as of `_open`
            raise ImageError(f"{name}: expected an image file, got {_reason(error, name)}") from error
        return (width, height) if turned else (height, width)


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


def is_converted(path: str | os.PathLike[str]) -> bool:
    """Whether `load_image` would convert a file's colors to sRGB; False where its header cannot be read."""
    try:
        with _open(os.fspath(path)) as image:
            return find_conversion(image) is not None
    except Exception:  # reported by whoever reads the image itself
        return False


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
        return _from_channels(image, name)
    import numpy as np
    from PIL import Image

    if isinstance(image, Image.Image):
        return _from_pil(image, name)
    if isinstance(image, np.ndarray):
        return _from_numpy(image, name)
    raise ImageError(f"{name}: expected a path, PIL image, numpy array or tensor, got {type(image).__name__}")


def expand_paths(args: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Files, folders and globs to a sorted list of files, each once.

    A folder gives every file below it with an image suffix (but hidden ones, and the overlays ``*.map.png`` that
    ``finpercep score --maps`` writes); a glob (``*``, ``?``,
    ``[…]``, ``**``) gives what it matches, folders opened likewise; anything else is a file and stays in the
    list even when it does not exist, so that reading it reports it by name. A folder without images and a
    glob without matches raise `ImageError`.
    """
    if isinstance(args, (str, os.PathLike)):
        args = [args]
    found: dict[str, Path] = {}
    for arg in args:
        for path in _expand(os.path.expanduser(os.fspath(arg))):
            found.setdefault(os.path.abspath(path), Path(path))
    if not found:
        raise ImageError("paths: expected at least one file, folder or glob, got none")
    return sorted(found.values())


def _expand(text: str) -> list[str]:
    if os.path.isdir(text):
        inside = list(_walk(text))
        if not inside:
            raise ImageError(f"{text}: expected a folder with images, got none with a known suffix")
        return inside
    if os.path.exists(text) or not glob.has_magic(text):
        return [text]
    matches = glob.glob(text, recursive=True)
    files = [f for match in matches for f in (_walk(match) if os.path.isdir(match) else [match])]
    if not files:
        raise ImageError(f"{text}: expected a pattern that matches files, got no match")
    return files


def _walk(folder: str) -> Iterator[str]:
    for root, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for file in files:
            if file.startswith(".") or file.endswith(".map.png"):
                continue
            if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES:
                yield os.path.join(root, file)


def _check_file(name: str) -> None:
    try:
        size = os.stat(name).st_size
    except FileNotFoundError as error:
        raise ImageError(f"{name}: expected an image file, got no such file") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: expected an image file, got {_reason(error, name)}") from error
    if not os.path.isfile(name):
        kind = "a folder" if os.path.isdir(name) else "something that is not a regular file"
        raise ImageError(f"{name}: expected an image file, got {kind}")
    if size == 0:
        raise ImageError(f"{name}: expected an image file, got an empty file")


def _opened(name: str) -> PILImage.Image:
    """`_open` of a file that is there, or an `ImageError`."""
    _check_file(name)
    try:
        return _open(name)
    except Exception as error:  # Pillow's readers raise nearly every type on broken files
        raise ImageError(f"{name}: expected an image file, got {_reason(error, name)}") from error


def _open(name: str) -> PILImage.Image:
    """Read the header only. Pillow's own bomb guard warns at 89 megapixels; ours replaces it."""
    from PIL import Image

    with _pillow_state, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.init()
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(name, formats=[f for f in _FORMATS if f in Image.OPEN])
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _stored_size(image: PILImage.Image) -> tuple[int, int]:
    """Width and height before EXIF turns them; of a TIFF, `size` is turned already in some versions of Pillow."""
    tags = getattr(image, "tag_v2", None)
    return (int(tags[256]), int(tags[257])) if image.format == "TIFF" and tags is not None else image.size


def _from_pil(image: PILImage.Image, name: str) -> torch.Tensor:
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
        raise ImageError(f"{name}: expected a readable image, got {_reason(error, name)}") from error
    return _turn(out, orientation)


def _orientation(image: PILImage.Image) -> int:
    with _pillow_state, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
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
        gray = _check_float(torch.from_numpy(np.array(strip)), name)
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


def _from_numpy(array: np.ndarray, name: str) -> torch.Tensor:
    import numpy as np

    if array.ndim not in (2, 3):
        raise ImageError(f"{name}: expected an array (H, W) or (H, W, C), got shape {tuple(array.shape)}")
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype.kind not in "buf" or array.dtype.itemsize > (2 if array.dtype.kind in "bu" else 8):
        raise ImageError(f"{name}: expected uint8, uint16, bool or float values, got {array.dtype}")
    if array.shape[2] not in (1, 2, 3, 4):
        hint = "; move the channels last" if array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"{name}: expected an array (H, W, C) with 1 to 4 channels, got shape {array.shape}{hint}")
    # native byte order and positive strides, which torch needs
    array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return _from_channels(torch.from_numpy(array).permute(2, 0, 1), name)


def _from_channels(image: torch.Tensor, name: str) -> torch.Tensor:
    """Check a ``(C, H, W)`` tensor and bring it to three channels."""
    if image.ndim != 3:
        hint = "; score a batch as it is, not as one image" if image.ndim == 4 else ""
        raise ImageError(f"{name}: expected a tensor (C, H, W), got shape {tuple(image.shape)}{hint}")
    if image.shape[0] not in (1, 2, 3, 4):
        hint = "; move the channels first" if image.shape[2] in (1, 3, 4) else ""
        raise ImageError(
            f"{name}: expected a tensor (C, H, W) with 1 to 4 channels, got shape {tuple(image.shape)}{hint}"
        )
    if image.numel() == 0:
        raise ImageError(f"{name}: expected at least 1x1 pixels, got shape {tuple(image.shape)}")
    if image.dtype == torch.uint16:
        image = ((image.to(torch.int32) + 128) // 257).to(torch.uint8)
    elif image.dtype == torch.bool:
        image = image.to(torch.uint8) * 255
    elif image.is_floating_point():
        image = _check_float(image.to(torch.float32), name)
    elif image.dtype != torch.uint8:
        raise ImageError(f"{name}: expected uint8, uint16, bool or float values, got {str(image.dtype)[6:]}")
    return _to_three_channels(image).contiguous()


def _check_float(image: torch.Tensor, name: str) -> torch.Tensor:
    low, high = (float(v) for v in image.detach().aminmax())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # also catches NaN, which aminmax passes on
        if low != low or high != high:
            count = int(image.isnan().sum())
            raise ImageError(f"{name}: expected values in [0, 1], got NaN in {count} of {image.numel()} values")
        raise ImageError(f"{name}: expected values in [0, 1], got {low:.7g} to {high:.7g}; clamp(0, 1) them")
    return image if low >= 0 and high <= 1 else image.clamp(0, 1)


def _to_three_channels(image: torch.Tensor) -> torch.Tensor:
    channels = image.shape[0]
    if channels == 3:
        return image
    color = image[:1].expand(3, -1, -1) if channels < 3 else image[:3]
    if channels == 1:
        return color
    alpha = image[-1:]
    if image.dtype == torch.uint8:  # round((c·a + 255·(255 - a)) / 255) in integers
        mixed = color.to(torch.int32) * alpha + 255 * (255 - alpha.to(torch.int32))
        return ((mixed + 127) // 255).to(torch.uint8)
    return color * alpha + (1 - alpha)


def _reason(error: BaseException, name: str) -> str:
    """One line out of any exception, without the file name that Pillow repeats."""
    text = str(error).replace(repr(name), "").replace(f"'{name}'", "")
    if os.path.isabs(name):  # a shorter name may be a part of any word
        text = text.replace(name, "")
    text = " ".join(text.split()).strip(" :")
    if "cannot identify image file" in text:
        return "content of no known image format"
    if "decoder" in text:
        return f"damaged or truncated data ({text})"
    return text or type(error).__name__
