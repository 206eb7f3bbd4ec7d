"""Image doors: every kind of file, array and tensor gives the right pixels or one clear line."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finpercep.io.images import MAX_PIXELS, ImageError, expand_paths, image_sides, load_image, to_tensor
from tests.conftest import close_folders


@pytest.fixture
def pil(photo_u8: torch.Tensor) -> Image.Image:
    return Image.fromarray(photo_u8.permute(1, 2, 0).numpy())


def one_line(error: pytest.ExceptionInfo[ImageError], start: object) -> str:
    message = str(error.value)
    assert message.startswith(f"{start}: expected ")
    assert "\n" not in message
    assert ", got " in message
    return message


# ------------------------------------------------------------------------------------------------- good files


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp", "ppm", "webp"])
def test_lossless_formats_keep_every_value(
    suffix: str, tmp_path: Path, pil: Image.Image, photo_u8: torch.Tensor
) -> None:
    path = tmp_path / f"a.{suffix}"
    pil.save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = load_image(path)
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert torch.equal(image, photo_u8)


def test_strips_do_not_change_values(
    tmp_path: Path, pil: Image.Image, photo_u8: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finpercep.io.pil_images._STRIP_PIXELS", 96 * 7)  # 64 rows: nine strips and a rest
    pil.save(tmp_path / "a.png")
    assert torch.equal(load_image(tmp_path / "a.png"), photo_u8)


def test_sides_by_the_header_are_those_of_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (50, 3)).save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (50, 3)).save(tmp_path / "b.jpg", exif=turned)
    (tmp_path / "a.txt").write_text("no image")
    for name in ("a.png", "b.jpg"):
        assert image_sides(tmp_path / name) == tuple(load_image(tmp_path / name).shape[1:])
    assert image_sides(tmp_path / "b.jpg") == (50, 3)
    for name in ("a.txt", "none"):
        with pytest.raises(ImageError) as error:
            image_sides(tmp_path / name)
        one_line(error, tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_sides_by_the_header_where_exif_turns(suffix: str, tmp_path: Path) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (50, 3)).save(tmp_path / f"a.{suffix}", exif=exif)
        found = image_sides(tmp_path / f"a.{suffix}")
        assert found == tuple(load_image(tmp_path / f"a.{suffix}").shape[1:]), orientation
        assert found == ((50, 3) if orientation >= 5 else (3, 50))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_sides_by_the_header_read_no_pixels(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (50, 3)).save(tmp_path / f"a.{suffix}")

    def refuse(image: Image.Image) -> None:
        raise AssertionError("pixels were read")

    with Image.open(tmp_path / f"a.{suffix}") as image:
        monkeypatch.setattr(type(image), "load", refuse)
    assert image_sides(tmp_path / f"a.{suffix}") == (3, 50)


@pytest.mark.parametrize("size", [(1, 1), (50, 3), (3, 50)])
def test_tiny_images(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "a.png")
    image = load_image(str(tmp_path / "a.png"))
    assert image.shape == (3, size[1], size[0])
    assert image[:, 0, 0].tolist() == [10, 20, 30]


def modes() -> dict[str, tuple[Image.Image, str, list[int]]]:
    """name -> (picture, suffix, expected color of the pixel at (0, 0))."""
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([255, 0, 0, 0, 200, 0])
    see_through = palette.copy()
    see_through.info["transparency"] = 1
    return {
        "gray": (Image.new("L", (4, 3), 77), "png", [77, 77, 77]),
        "bilevel": (Image.new("1", (4, 3), 1), "png", [255, 255, 255]),
        "gray with alpha": (Image.new("LA", (4, 3), (0, 51)), "png", [204, 204, 204]),
        "palette": (palette, "png", [0, 200, 0]),
        "palette, transparent": (see_through, "png", [255, 255, 255]),
        "RGBA, clear": (Image.new("RGBA", (4, 3), (9, 9, 9, 0)), "png", [255, 255, 255]),
        "RGBA, half": (Image.new("RGBA", (4, 3), (255, 0, 55, 51)), "png", [255, 204, 215]),
        "RGBA, opaque": (Image.new("RGBA", (4, 3), (9, 8, 7, 255)), "webp", [9, 8, 7]),
        "CMYK": (Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "tiff", [255, 0, 0]),
        "CMYK jpeg": (Image.new("CMYK", (16, 16), (255, 255, 0, 0)), "jpg", [0, 0, 254]),
        "16-bit png": (Image.fromarray(np.full((3, 4), 257 * 99 + 100, np.uint16)), "png", [99] * 3),
        "16-bit tiff": (Image.fromarray(np.full((3, 4), 65535, np.uint16)), "tiff", [255] * 3),
        "float tiff": (Image.fromarray(np.full((3, 4), 0.2, np.float32)), "tiff", [51] * 3),
        "32-bit tiff in 16-bit range": (Image.fromarray(np.full((3, 4), 257, np.int32)), "tiff", [1] * 3),
    }


@pytest.mark.parametrize("name", modes())
def test_modes(name: str, tmp_path: Path) -> None:
    picture, suffix, expected = modes()[name]
    path = tmp_path / f"a.{suffix}"
    picture.save(path, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    image = load_image(path)
    assert image.shape == (3, picture.height, picture.width)
    assert (image[:, 0, 0].int() - torch.tensor(expected)).abs().max() <= (1 if suffix == "jpg" else 0)
    assert torch.equal(to_tensor(picture), image)


def test_16_bit_rgb_png(tmp_path: Path) -> None:
    """Written by hand, since Pillow reads but does not write 16-bit color."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"\0" + struct.pack(">9H", 0, 32896, 65535, 257, 514, 771, 200, 255, 456)  # the last three are cut
    header = struct.pack(">IIBBBBB", 3, 1, 16, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert load_image(path)[:, 0].T.tolist() == [[0, 128, 255], [1, 2, 3], [0, 0, 1]]
    gray = to_tensor(Image.fromarray(np.array([[200, 255, 456]], dtype=np.uint16)))
    assert gray[0].tolist() == [[1, 1, 2]]  # rounded


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_exif_behind_the_pixels_of_a_png_turns_it(orientation: int, frames: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    photo.save(tmp_path / "before.png", exif=exif, save_all=True, append_images=[photo.rotate(180)] * (frames - 1))
    data = (tmp_path / "before.png").read_bytes()
    chunks, place = [], 8
    while place < len(data):
        length = 12 + int.from_bytes(data[place : place + 4], "big")
        chunks.append(data[place : place + length])
        place += length
    last = [chunk for kind in (b"eXIf", b"IEND") for chunk in chunks if chunk[4:8] == kind]
    behind = data[:8] + b"".join([chunk for chunk in chunks if chunk not in last] + last)
    (tmp_path / "behind.png").write_bytes(behind)
    assert len(behind) == len(data)
    assert behind != data

    image = load_image(tmp_path / "behind.png")
    if frames == 1:  # of an animation the first picture is read, and what stands behind the others is not
        assert torch.equal(image, load_image(tmp_path / "before.png"))
    assert image_sides(tmp_path / "behind.png") == tuple(image.shape[1:])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_exif_orientation(orientation: int, suffix: str, tmp_path: Path, pil: Image.Image) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    pil.save(path, exif=exif)
    with Image.open(path) as opened:
        expected = torch.from_numpy(np.array(ImageOps.exif_transpose(opened))).permute(2, 0, 1)
    assert torch.equal(load_image(path), expected)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animation_gives_first_frame(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 0, 255))]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {}))
    assert load_image(path)[:, 4, 4].tolist() == [255, 0, 0]


def test_hundred_megapixels_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    Image.new("1", (10_000, 10_000), 1).save(path)
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_image(path)
    assert image.shape == (3, 10_000, 10_000)
    assert image.dtype == torch.uint8
    assert image.min() == 255
    assert limit == Image.MAX_IMAGE_PIXELS  # Pillow's guard is back for everybody else


# -------------------------------------------------------------------------------------------------- bad files


def test_decompression_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    side = 16_400
    assert side * side > MAX_PIXELS
    Image.new("1", (side, side)).save(path)
    with pytest.raises(ImageError) as error:
        load_image(path)
    assert "at most 268 megapixels, got 16400x16400 (269 megapixels)" in one_line(error, path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"hello, world", "no known image format"), (b"\x89PNG\r\n\x1a\n\0\0", "got ")],
)
def test_foreign_files(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        load_image(path)
    assert reason in one_line(error, path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "bmp", "gif"])
def test_truncated_files(suffix: str, tmp_path: Path, pil: Image.Image) -> None:
    path = tmp_path / f"a.{suffix}"
    pil.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError) as error:
        load_image(path)
    one_line(error, path)


def test_missing_folder_and_null_path(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as error:
        load_image(tmp_path / "none.png")
    assert "no such file" in one_line(error, tmp_path / "none.png")
    with pytest.raises(ImageError) as error:
        load_image(tmp_path)
    assert "a folder" in one_line(error, tmp_path)
    with pytest.raises(ImageError):
        load_image("a\0b.png")


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.2])
def test_float_file_out_of_range(value: float, tmp_path: Path) -> None:
    array = np.full((3, 4), 0.5, np.float32)
    array[1, 2] = value
    Image.fromarray(array).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError) as error:
        load_image(tmp_path / "a.tiff")
    one_line(error, tmp_path / "a.tiff")


def test_32_bit_integers(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4), 70_000, np.int32)).save(tmp_path / "a.tiff")
    with pytest.raises(ImageError) as error:
        load_image(tmp_path / "a.tiff")
    assert "70000" in one_line(error, tmp_path / "a.tiff")


# ----------------------------------------------------------------------------------------- arrays and tensors


def test_arrays(photo_u8: torch.Tensor) -> None:
    array = photo_u8.permute(1, 2, 0).numpy()
    assert torch.equal(to_tensor(array), photo_u8)
    assert torch.equal(to_tensor(array[::-1, ::-1]), photo_u8.flip(1, 2))
    assert torch.equal(to_tensor(array[..., 0]), photo_u8[:1].expand(3, -1, -1))
    assert torch.equal(to_tensor(array.astype(np.uint16) * 257), photo_u8)
    assert torch.equal(to_tensor((array.astype(np.uint16) * 257).astype(">u2")), photo_u8)
    as_float = to_tensor(array / 255.0)
    assert as_float.dtype == torch.float32
    assert torch.allclose(as_float, photo_u8 / 255)
    alpha = np.full((*array.shape[:2], 1), 51, np.uint8)
    expected = torch.round((photo_u8.double() * 51 + 255 * 204) / 255).to(torch.uint8)
    assert torch.equal(to_tensor(np.concatenate([array, alpha], 2)), expected)
    assert to_tensor(np.ones((2, 2), bool)).unique().tolist() == [255]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_float_tensors(dtype: torch.dtype, photo: torch.Tensor) -> None:
    image = to_tensor(photo.to(dtype))
    assert image.dtype == torch.float32
    assert torch.equal(image, photo.to(dtype).float())


def test_tensors(photo_u8: torch.Tensor, photo: torch.Tensor) -> None:
    assert torch.equal(to_tensor(photo_u8), photo_u8)
    assert torch.equal(to_tensor(photo_u8[:1]), photo_u8[:1].expand(3, -1, -1))
    rgba = torch.cat([photo, torch.full_like(photo[:1], 0.25)])
    assert torch.allclose(to_tensor(rgba), photo * 0.25 + 0.75)
    assert to_tensor(torch.full((3, 2, 2), 1.00005)).max() == 1  # rounding is forgiven, and clamped
    assert to_tensor(photo_u8.transpose(1, 2)).is_contiguous()


BAD: list[tuple[str, Callable[[], object], str]] = [
    ("nan", lambda: torch.full((3, 2, 2), float("nan")), "NaN in 12 of 12"),
    ("infinite", lambda: torch.full((3, 2, 2), float("inf")), "inf"),
    ("0..255 floats", lambda: np.full((2, 2, 3), 200.0), "200"),
    ("negative", lambda: torch.full((3, 2, 2), -0.01), "-0.01"),
    ("batch", lambda: torch.zeros(1, 3, 2, 2), "(1, 3, 2, 2)"),
    ("flat", lambda: np.zeros(12), "(12,)"),
    ("channels last tensor", lambda: torch.zeros(8, 9, 3), "channels first"),
    ("channels first array", lambda: np.zeros((3, 8, 9)), "channels last"),
    ("int64", lambda: torch.zeros(3, 2, 2, dtype=torch.int64), "int64"),
    ("int32 array", lambda: np.zeros((2, 2, 3), np.int32), "int32"),
    ("complex", lambda: np.zeros((2, 2, 3), np.complex64), "complex64"),
    ("no pixels", lambda: torch.zeros(3, 0, 5), "(3, 0, 5)"),
    ("no pixels array", lambda: np.zeros((0, 5, 3)), "at least 1x1"),
    ("a list", lambda: [1, 2], "list"),
    ("nothing", lambda: None, "NoneType"),
]


@pytest.mark.parametrize(("make", "reason"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_arguments(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(ImageError) as error:
        to_tensor(make(), name="images[3]")
    assert reason in one_line(error, "images[3]")


# ------------------------------------------------------------------------------------------------------ paths


def test_expand_paths(tmp_path: Path) -> None:
    for name in (
        "b/gt.webp",
        "a/gt.webp",
        "a/deep/X.PNG",
        "a/notes.txt",
        "a/.hidden.png",
        "a/odd[1].png",
        "a/gt.map.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(*args: str) -> list[str]:
        return [p.relative_to(tmp_path).as_posix() for p in expand_paths([tmp_path / a for a in args])]

    assert names("") == ["a/deep/X.PNG", "a/gt.webp", "a/odd[1].png", "b/gt.webp"]
    assert names("*/gt.webp") == ["a/gt.webp", "b/gt.webp"]
    assert names("**/*.PNG") == ["a/deep/X.PNG"]
    assert names("b", "a/gt.webp", "b/gt.webp", "b/../b/gt.webp") == ["a/gt.webp", "b/gt.webp"]
    assert names("a/odd[1].png") == ["a/odd[1].png"]  # an existing file is no pattern
    assert names("a/gt.map.png") == ["a/gt.map.png"]  # an overlay counts where it is named
    assert names("a/notes.txt", "gone.png") == ["a/notes.txt", "gone.png"]
    assert [p.name for p in expand_paths([tmp_path, tmp_path / "b/gt.webp"], {".txt"})] == ["notes.txt", "gt.webp"]
    with pytest.raises(ImageError, match=r"b: expected a folder with \*\.txt files, got none$"):
        expand_paths([tmp_path / "b"], {".txt"})
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    assert names("") == ["a/deep/X.PNG", "a/gt.webp", "a/odd[1].png", "b/gt.webp"]  # links are not entered
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "*.tiff"):
        with pytest.raises(ImageError) as error:
            names(missing)
        one_line(error, tmp_path / missing)
    with pytest.raises(ImageError):
        expand_paths([])


def test_import_is_light() -> None:
    code = "import sys, finpercep.io.images; sys.exit('PIL' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", ["e", "image", "data"])
def test_a_file_name_is_no_part_of_the_reason(
    name: str, tmp_path: Path, pil: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.jpg"
    pil.save(whole)
    (tmp_path / name).write_bytes(whole.read_bytes()[:-200])
    monkeypatch.chdir(tmp_path)
    reasons = []
    for path in (name, str(tmp_path / name)):
        with pytest.raises(ImageError) as caught:
            load_image(path)
        reasons.append(str(caught.value).removeprefix(f"{path}: "))
    assert reasons[0] == reasons[1]
    assert "image file is truncated" in reasons[0]


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").touch()
    close_folders(monkeypatch, "closed")
    with pytest.raises(ImageError) as error:
        expand_paths([tmp_path])
    one_line(error, tmp_path / "closed")
    assert str(error.value).endswith(": expected a folder that can be read, got Permission denied")
