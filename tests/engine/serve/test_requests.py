"""Requests as bytes: right ones give their images, every other gives a refusal and nothing else."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from finpercep.engine.serve.requests import MOST_OTHERS, MOST_TEXTS, Png, Refused, images_of
from finpercep.engine.serve.settings import ServeSettings
from finpercep.io.images import ImageError, to_tensor

LIMITS = ServeSettings(request_images=4, request_megapixels=1)
RAW, FORM = "application/octet-stream", "multipart/form-data; boundary=xyz"
PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def png_of(pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def form_of(*files: bytes, line: bytes = b"--xyz") -> bytes:
    head = b'\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    return b"".join(line + head + file + b"\r\n" for file in files) + line + b"--\r\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def pixels_of(picture: Any) -> torch.Tensor:
    return to_tensor(picture() if isinstance(picture, Png) else picture)


def refused(kind: str, shape: str | None, body: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        images_of(kind, shape, body, LIMITS)
    return caught.value


EXPECTED = torch.from_numpy(PIXELS).permute(2, 0, 1)


def test_a_png_a_form_and_raw_pixels_hold_the_same_images() -> None:
    raw = EXPECTED.contiguous().numpy().tobytes()
    quoted = 'multipart/form-data; charset=x; boundary="xyz"'
    for kind, shape, body, count in (
        ("image/png", None, png_of(), 1),
        ("Image/PNG; charset=utf-8", None, png_of(), 1),
        (FORM, None, form_of(png_of(), png_of(), png_of()), 3),
        (quoted, None, form_of(png_of()), 1),
        (RAW, "3,5,7", raw, 1),
        (RAW, " 2, 3, 5, 7 ", raw + raw, 2),
    ):
        found = images_of(kind, shape, body, LIMITS)
        assert len(found) == count
        assert all(torch.equal(pixels_of(one), EXPECTED) for one in found)


def test_a_form_may_hold_its_boundary_in_a_png() -> None:
    """Only a line break before it makes it one."""
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "--xyz in the middle")
    (found,) = images_of(FORM, None, form_of(png_of(pnginfo=info)), LIMITS)
    assert torch.equal(pixels_of(found), EXPECTED)


@pytest.mark.parametrize(
    ("kind", "shape", "body", "status", "reason"),
    [
        ("", None, b"x", 415, "Content-Type: expected image/png, multipart/form-data or application/octet-stream"),
        ("image/jpeg", None, b"x", 415, "got 'image/jpeg'"),
        ("image/png", None, b"", 400, "image 1: expected a PNG, got other data"),
        ("image/png", None, b"\xff\xd8\xff\xe0 a JPEG", 400, "image 1: expected a PNG, got other data"),
        ("image/png", None, png_of()[:-1], 400, "image 1: expected a whole PNG, got a truncated one"),
        ("image/png", None, png_of()[:40], 400, "image 1: expected a whole PNG, got a truncated one"),
        ("image/png", None, claiming(0, 9), 400, "image 1: expected at least 1x1 pixels, got 0x9"),
        ("image/png", None, claiming(50_000, 50_000), 413, "expected at most 1000000 pixels, got 50000x50000"),
        ("image/png", None, claiming(2**31, 1), 400, "image 1: expected at least 1x1 pixels"),
        (
            "image/png",
            None,
            b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
            400,
            "image 1: expected a PNG that begins with",
        ),
        (
            "image/png",
            None,
            claiming(9, 9)[:33] + claiming(5000, 5000)[8:],
            400,
            "image 1: expected one header, got two",
        ),
        (FORM, None, form_of(png_of(), b"no image"), 400, "image 2: expected a PNG, got other data"),
        (FORM, None, form_of(*[png_of()] * 5), 413, "images: expected at most 4 in a request, got 5"),
        (FORM, None, form_of(claiming(800, 800), claiming(800, 800)), 413, "image 2: expected at most 360000 pixels"),
        (FORM, None, form_of(), 400, "body: expected at least one image, got a form without parts"),
        (FORM, None, form_of(png_of())[:-8], 400, "body: expected a form that begins and ends with its boundary"),
        (FORM, None, b"before" + form_of(png_of()), 400, "body: expected a form that begins and ends"),
        (FORM, None, b"--xyz\r\n" + png_of() + b"\r\n--xyz--\r\n", 400, "image 1: expected headers, an empty line"),
        (
            "multipart/form-data",
            None,
            form_of(png_of()),
            400,
            "Content-Type: expected multipart/form-data with a bound",
        ),
        (RAW, None, b"123", 400, "X-Shape: expected 3,H,W or N,3,H,W for application/octet-stream, got 'none'"),
        (RAW, "3,1,-1", b"123", 400, "X-Shape: expected 3,H,W or N,3,H,W"),
        (RAW, "1,1,3", b"123", 400, "X-Shape: expected three channels and no zeros, got '1,1,3'"),
        (RAW, "0,3,1,1", b"", 400, "X-Shape: expected three channels and no zeros"),
        (RAW, "3,1,1", b"12", 400, "body: expected 3 bytes for X-Shape 3,1,1, got 2"),
        (RAW, "3,9999,9999", b"12", 413, "pixels: expected at most 1000000 in a request, got 99980001"),
        (RAW, "5,3,1,1", bytes(15), 413, "images: expected at most 4 in a request, got 5"),
    ],
)
def test_refusals(kind: str, shape: str | None, body: bytes, status: int, reason: str) -> None:
    found = refused(kind, shape, body)
    assert (found.status, reason in found.reason) == (status, True), found.reason


def test_many_texts_are_refused() -> None:
    info = PngImagePlugin.PngInfo()
    for number in range(MOST_TEXTS + 1):
        info.add_text(f"note {number}", "x", zip=True)
    assert refused("image/png", None, png_of(pnginfo=info)).reason == (
        f"image 1: expected at most {MOST_TEXTS} text chunks, got more"
    )


@pytest.mark.parametrize(
    ("kind", "most", "what"),
    [
        (b"abCd", MOST_OTHERS, "64 chunks beside its pixels"),
        (b"iCCP", MOST_OTHERS, "64 chunks beside its pixels"),
        (b"IDAT", 64, "64 chunks of pixels"),
    ],
)
def test_many_chunks_are_refused_before_the_rest_is_read(kind: bytes, most: int, what: str) -> None:
    """Behind the one too many stands no chunk, which nobody gets to see."""
    head = claiming(8, 8)[:33]
    assert refused("image/png", None, head + (most + 1) * chunk(kind, b"") + b"rest").reason == (
        f"image 1: expected at most {what}, got more"
    )


def test_pixels_in_chunks_of_a_kilobyte_are_read() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in noise))
    pieces = b"".join(chunk(b"IDAT", data[at : at + 1024]) for at in range(0, len(data), 1024))
    whole = claiming(200, 200)[:33] + pieces + chunk(b"IEND", b"")
    (found,) = images_of("image/png", None, whole, LIMITS)
    assert torch.equal(pixels_of(found), torch.from_numpy(noise).permute(2, 0, 1))


def test_damage_that_the_chunks_do_not_show_is_an_error_of_the_image() -> None:
    whole = png_of(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    damaged = whole[:60] + bytes(200) + whole[260:]
    (found,) = images_of("image/png", None, damaged, LIMITS)
    with pytest.raises(ImageError, match="image: expected a readable"):
        pixels_of(found)


def test_what_is_sent_is_shown_on_one_line_and_not_at_length() -> None:
    assert refused("text/\x1b[31m\nred" + "x" * 500, None, b"").reason.endswith("xxx'")
    assert "\x1b" not in refused("text/\x1b[31m\nred", None, b"").reason
    assert len(refused("x" * 5000, None, b"").reason) < 250


def ends_well(kind: str, shape: str | None, body: bytes) -> None:
    """Images or a refusal, and of images pixels or an `ImageError`."""
    refusal, found = None, []
    try:
        found = images_of(kind, shape, body, LIMITS)
    except Refused as error:
        refusal = error
    if refusal is not None:
        assert 400 <= refusal.status < 500
        assert refusal.reason.isprintable()
        return
    assert 1 <= len(found) <= LIMITS.request_images
    for picture in found:
        try:
            image = pixels_of(picture)
        except ImageError:
            continue
        assert image.dtype == torch.uint8
        assert image[0].numel() <= LIMITS.request_pixels


FUZZ = settings(max_examples=150, deadline=None, derandomize=True, database=None)
KINDS = st.sampled_from(
    ["image/png", RAW, FORM, 'multipart/form-data; boundary="xyz"', "multipart/form-data", "a/b", ""]
)


@FUZZ
@given(KINDS, st.none() | st.text(max_size=20), st.binary(max_size=200))
def test_any_bytes(kind: str, shape: str | None, body: bytes) -> None:
    ends_well(kind, shape, body)


@FUZZ
@given(st.text(max_size=60), st.from_regex(r"\A\d{1,4}(,\d{1,4}){1,4}\Z"), st.binary(max_size=64))
def test_any_headers(kind: str, shape: str, body: bytes) -> None:
    for one in (kind, RAW, f"multipart/form-data; boundary={kind}"):
        ends_well(one, shape, body)


@FUZZ
@given(st.data())
def test_changed_requests(data: st.DataObject) -> None:
    """Right requests of which bytes are changed, cut out, doubled or moved."""
    kind, body = data.draw(st.sampled_from([("image/png", png_of()), (FORM, form_of(png_of(), png_of()))]))
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(changed)))
        stop = data.draw(st.integers(start, min(len(changed), start + 40)))
        part = bytes(changed[start:stop])
        changed[start:stop] = data.draw(st.sampled_from([b"", part + part, part[::-1]]) | st.binary(max_size=12))
    ends_well(kind, None, bytes(changed))


@FUZZ
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=30),
    st.sampled_from([b"zTXt", b"iCCP", b"eXIf"]),
)
def test_changed_chunks(width: int, height: int, extra: bytes, kind: bytes) -> None:
    """Chunks with right checksums and any contents."""
    body = claiming(width, height)
    ends_well("image/png", None, body)
    small = claiming(3, 3)
    ends_well("image/png", None, small[:33] + chunk(kind, extra) + small[33:])


def test_unpacking_stays_small() -> None:
    """Zeros packed in a text or a profile, and an image that is shorter than it says, take little memory."""
    small, zeros = claiming(3, 3), zlib.compress(bytes(40_000_000), 9)
    bodies = [small[:33] + chunk(kind, b"name\0\0" + zeros) + small[33:] for kind in (b"zTXt", b"iCCP")]
    tracemalloc.start()
    try:
        for body in [*bodies, claiming(1000, 1000)]:
            ends_well("image/png", None, body)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_thin_image_counts_as_what_it_costs() -> None:
    """Sides are padded by the encoder."""
    thin = claiming(40_000, 1)
    found = refused("image/png", None, thin)
    assert (found.status, found.reason) == (
        413,
        "image 1: expected at most 1000000 pixels, got 40000x1, where a side counts as at least 32",
    )
    assert refused(RAW, "3,40000,1", bytes(120_000)).status == 413
    assert refused(FORM, None, form_of(claiming(20_000, 1), claiming(20_000, 1))).status == 413
    assert len(images_of("image/png", None, claiming(31_250, 1), LIMITS)) == 1
