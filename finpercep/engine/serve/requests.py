"""Requests to the service: bytes in, images or a clear refusal out.

Nothing here knows a network or a model. Headers are read and sizes are checked; pixels are decoded later, in the lanes.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from finpercep.engine.serve.settings import ServeSettings
from finpercep.io.images import ImageError
from finpercep.rewards.remote import LEAST_SIDE, PNG, RAW, SHAPE, counted_pixels

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = ["Picture", "Png", "Refused", "images_of"]

FORM = "multipart/form-data"
HEADERS_OF_A_PART = 4096
MOST_TEXTS = 16
"""Text chunks of a PNG: Pillow unpacks up to a megabyte of each."""
MOST_OTHERS = 64
"""Chunks of a PNG beside those of its pixels: Pillow reads each one, and unpacks color profiles."""
MOST_OF_PIXELS = (64, 1024)
"""Chunks of a PNG's pixels: so many, and one more for so many bytes of the file; writers make them of 8 kB or more."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BOUNDARY = re.compile(r"""boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))\s*(?:;|$)""", re.IGNORECASE)
_SHAPE = re.compile(r" *([0-9]{1,9}) *, *([0-9]{1,9}) *, *([0-9]{1,9}) *(?:, *([0-9]{1,9}) *)?")


class Refused(Exception):
    """A request that is not answered as asked: its status, the reason in one line, and further headers."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


class Png:
    """A PNG whose chunks are whole and whose size is allowed; called, it opens the image."""

    def __init__(self, data: bytes, width: int, height: int) -> None:
        self.data, self.size = data, (width, height)

    def __call__(self) -> PILImage.Image:
        from PIL import Image

        try:
            return Image.open(io.BytesIO(self.data), formats=["PNG"])
        except Exception as error:  # Pillow's readers raise nearly every type on broken files
            raise ImageError("image: expected a readable PNG, got damaged data") from error


Picture = Png | Tensor
"""An image of a request: a PNG, or uint8 (3,H,W)."""


def images_of(kind: str, shape: str | None, body: bytes, settings: ServeSettings) -> list[Picture]:
    """The images of a request, in their order: at least one.

    Args:
        kind: the Content-Type: "image/png", "multipart/form-data" of PNG files, or "application/octet-stream", which is
            uint8 RGB by rows, channel after channel.
        shape: of raw images, "3,H,W" or "N,3,H,W".
        settings: with the limits.

    Raises:
        Refused: 415 another type, 413 too much of something, 400 everything else; names the image, counted from 1.
    """
    name = kind.partition(";")[0].strip().lower()
    if name == PNG:
        return [png(body, "image 1", settings.request_pixels)]
    if name == RAW:
        return list(raw(shape, body, settings))
    if name == FORM:
        found: list[Picture] = []
        pixels = settings.request_pixels
        for number, data in enumerate(parts(kind, body, settings.request_images), 1):
            image = png(data, f"image {number}", pixels)
            pixels -= counted_pixels(*image.size)
            found.append(image)
        return found
    raise Refused(415, f"Content-Type: expected {PNG}, {FORM} or {RAW}, got {_shown(name)}")


def raw(shape: str | None, body: bytes, settings: ServeSettings) -> Tensor:
    """Images (N,3,H,W), uint8, copied from `body`."""
    match = _SHAPE.fullmatch(shape or "")
    if match is None:
        raise Refused(400, f"{SHAPE}: expected 3,H,W or N,3,H,W for {RAW}, got {_shown(shape or 'none')}")
    sizes = [int(number) for number in match.groups() if number is not None]
    count, channels, height, width = sizes if len(sizes) == 4 else (1, *sizes)
    if channels != 3 or not count or not height or not width:
        raise Refused(400, f"{SHAPE}: expected three channels and no zeros, got {_shown(shape or '')}")
    _limited("images", count, settings.request_images)
    _limited("pixels", count * counted_pixels(height, width), settings.request_pixels)
    if len(body) != count * 3 * height * width:
        raise Refused(400, f"body: expected {count * 3 * height * width} bytes for {SHAPE} {shape}, got {len(body)}")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).view(count, 3, height, width)


def png(data: bytes, name: str, most_pixels: int) -> Png:
    """A PNG, after a look at its chunks."""
    if not data.startswith(_SIGNATURE):
        raise Refused(400, f"{name}: expected a PNG, got other data")
    chunks = _chunks(data, name)
    kind, place, length = next(chunks)
    if kind != b"IHDR" or length != 13:
        raise Refused(400, f"{name}: expected a PNG that begins with its header, got another chunk")
    width, height = struct.unpack_from(">II", data, place)
    if not 0 < width < 2**31 or not 0 < height < 2**31:
        raise Refused(400, f"{name}: expected at least 1x1 pixels, got {width}x{height}")
    if counted_pixels(height, width) > most_pixels:
        shorter = f", where a side counts as at least {LEAST_SIDE}" if min(width, height) < LEAST_SIDE else ""
        raise Refused(413, f"{name}: expected at most {most_pixels} pixels, got {width}x{height}{shorter}")
    if not _bytes_of_pixels(chunks, name, len(data)):
        raise Refused(400, f"{name}: expected a PNG with pixels, got none")
    return Png(data, width, height)


def _bytes_of_pixels(chunks: Iterator[tuple[bytes, int, int]], name: str, size: int) -> int:
    """Bytes of compressed pixels among the chunks of `size` bytes; too many chunks are refused before they are read."""
    most_of_pixels = MOST_OF_PIXELS[0] + size // MOST_OF_PIXELS[1]
    texts = others = of_pixels = found = 0
    for kind, _, length in chunks:
        if kind == b"IDAT":
            of_pixels, found = of_pixels + 1, found + length
        elif kind == b"IHDR":  # the last one would be the one that is decoded
            raise Refused(400, f"{name}: expected one header, got two")
        else:
            others, texts = others + 1, texts + (kind in (b"tEXt", b"zTXt", b"iTXt"))
        for what, count, most in (
            ("text chunks", texts, MOST_TEXTS),
            ("chunks beside its pixels", others, MOST_OTHERS),
            ("chunks of pixels", of_pixels, most_of_pixels),
        ):
            if count > most:
                raise Refused(400, f"{name}: expected at most {most} {what}, got more")
    return found


def _chunks(data: bytes, name: str) -> Iterator[tuple[bytes, int, int]]:
    """Kind, place and length of each chunk up to the end of the image, which must be there."""
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            break
        yield kind, at + 8, length
        if kind == b"IEND":
            return
        at += 12 + length
    raise Refused(400, f"{name}: expected a whole PNG, got a truncated one")


def parts(kind: str, body: bytes, most: int) -> Iterator[bytes]:
    """The contents of a form's parts; their names and headers do not matter."""
    match = _BOUNDARY.search(kind)
    if match is None:
        raise Refused(400, f"Content-Type: expected {FORM} with a boundary, got {_shown(kind)}")
    line = b"\r\n--" + (match[1] or match[2]).encode("latin-1", "replace")
    body = b"\r\n" + body
    _limited("images", body.count(line) - 1, most)
    first, *sections = body.split(line)
    if first or not sections or sections[-1].rstrip(b"\r\n") != b"--":
        raise Refused(400, "body: expected a form that begins and ends with its boundary, got another")
    if len(sections) == 1:
        raise Refused(400, "body: expected at least one image, got a form without parts")
    for number, section in enumerate(sections[:-1], 1):
        head, _, content = section.partition(b"\r\n\r\n")
        if not head.startswith(b"\r\n") or len(head) > HEADERS_OF_A_PART or len(head) == len(section):
            raise Refused(400, f"image {number}: expected headers, an empty line and a PNG, got something else")
        yield content


def _limited(what: str, count: int, most: int) -> None:
    if count > most:
        raise Refused(413, f"{what}: expected at most {most} in a request, got {count}")


def _shown(text: str) -> str:
    """What a client sent, as a short line that is safe to print."""
    return ascii(text[:80])
