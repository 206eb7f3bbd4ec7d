"""Embedded color profiles: the values that come out are those of the colors that were meant."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from finpercep.io.images import load_image, to_tensor

from . import icc


@pytest.fixture
def colors() -> np.ndarray:
    return np.random.default_rng().integers(0, 256, (37, 53, 3), np.uint8)


def written(picture: Image.Image, path: Path, profile: bytes | None) -> Path:
    picture.save(path, icc_profile=profile, **({"lossless": True} if path.suffix == ".webp" else {}))
    return path


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
@pytest.mark.parametrize(
    ("colorants", "gamma"), [(icc.DISPLAY_P3, None), (icc.ADOBE_RGB, icc.ADOBE_GAMMA)], ids=["Display P3", "Adobe RGB"]
)
def test_wide_gamuts(
    suffix: str, colorants: np.ndarray, gamma: float | None, colors: np.ndarray, tmp_path: Path
) -> None:
    if gamma is not None:  # see `test_the_color_that_is_furthest_off`
        colors[(colors[..., 0] == 141) & (colors[..., 1] == 249), 1] = 248
    path = written(Image.fromarray(colors), tmp_path / f"a.{suffix}", icc.rgb_profile(colorants, gamma))
    image = load_image(path)
    expected = icc.to_srgb(colors, colorants, gamma)
    assert np.abs(expected - colors).max() > 20  # else nothing would have been tested
    assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() < 1
    assert torch.equal(to_tensor(Image.open(path)), image)


def test_known_colors(tmp_path: Path) -> None:
    """By the published matrices between the primaries; Display P3's red lies outside sRGB."""
    for colorants, gamma, color, expected in (
        (icc.DISPLAY_P3, None, (255, 0, 0), (255, 0, 0)),
        (icc.DISPLAY_P3, None, (200, 100, 50), (215, 93, 31)),
        (icc.ADOBE_RGB, icc.ADOBE_GAMMA, (200, 100, 50), (227, 100, 42)),
        (icc.ADOBE_RGB, icc.ADOBE_GAMMA, (128, 128, 128), (129, 129, 129)),
    ):
        path = written(Image.new("RGB", (2, 2), color), tmp_path / "a.png", icc.rgb_profile(colorants, gamma))
        assert load_image(path)[:, 0, 0].tolist() == list(expected), color


def test_the_color_that_is_furthest_off(tmp_path: Path) -> None:
    """Of all 2^24 colors in Adobe RGB, the 256 of one red and green are more than a level from the exact value: by
    LittleCMS's fixed-point arithmetic of 8 bits (docs/choices.md)."""
    color = (141, 249, 3)
    path = written(Image.new("RGB", (2, 2), color), tmp_path / "a.png", icc.rgb_profile(icc.ADOBE_RGB, icc.ADOBE_GAMMA))
    expected = icc.to_srgb(np.array([[color]], np.uint8), icc.ADOBE_RGB, icc.ADOBE_GAMMA)[0, 0]
    assert np.abs(load_image(path)[:, 0, 0].numpy() - expected).max() < 1.15


def test_strips_and_orientation_keep_the_conversion(
    colors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = icc.rgb_profile(icc.DISPLAY_P3, None)
    path = written(Image.fromarray(colors), tmp_path / "a.png", profile)
    whole = load_image(path)
    monkeypatch.setattr("finpercep.io.pil_images._STRIP_PIXELS", 53 * 5)
    assert torch.equal(load_image(path), whole)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(colors).save(tmp_path / "b.png", icc_profile=profile, exif=exif)
    assert torch.equal(load_image(tmp_path / "b.png"), whole.flip(1, 2))


@pytest.mark.parametrize(
    "profile",
    [None, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), icc.rgb_profile(icc.SRGB, None)],
    ids=["none", "LittleCMS's sRGB", "a table of sRGB"],
)
def test_srgb_keeps_every_value(profile: bytes | None, colors: np.ndarray, tmp_path: Path) -> None:
    path = written(Image.fromarray(colors), tmp_path / "a.png", profile)
    assert np.array_equal(load_image(path).permute(1, 2, 0).numpy(), colors)


def test_alpha_is_composited_after_the_conversion(tmp_path: Path) -> None:
    profile = icc.rgb_profile(icc.DISPLAY_P3, None)
    path = written(Image.new("RGBA", (3, 3), (200, 100, 50, 51)), tmp_path / "a.png", profile)
    expected = [round((51 * v + 204 * 255) / 255) for v in (215, 93, 31)]
    assert load_image(path)[:, 0, 0].tolist() == expected


def test_palette(tmp_path: Path) -> None:
    picture = Image.new("P", (3, 3), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    path = written(picture, tmp_path / "a.png", icc.rgb_profile(icc.DISPLAY_P3, None))
    assert load_image(path)[:, 0, 0].tolist() == [215, 93, 31]


def test_gray(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8)[None].repeat(2, 0)
    expected = icc.srgb_encode(levels / 255) * 255
    alpha = Image.fromarray(levels).convert("LA")
    deep = Image.fromarray(levels.astype(np.uint16) * 257)
    for picture in (Image.fromarray(levels), alpha, deep):
        path = written(picture, tmp_path / "a.png", icc.gray_profile(1.0))
        image = load_image(path).numpy()
        assert np.abs(image - expected).max() < 1, picture.mode
    with_color = written(Image.fromarray(levels), tmp_path / "b.png", icc.rgb_profile(icc.SRGB, 1.0))
    assert np.abs(load_image(with_color).numpy() - expected).max() < 1  # a gray image may have an RGB profile


def test_cmyk(tmp_path: Path) -> None:
    """The corners of the table: paper, black, and a cyan of L* 50, a* -20, b* -30."""
    corners = [(0, 128, 128)] * 16
    corners[0], corners[8] = (255, 128, 128), (round(50 * 2.55), 128 - 20, 128 - 30)
    for ink, expected in (
        ((0, 0, 0, 0), (255, 255, 255)),
        ((255, 255, 255, 255), (0, 0, 0)),
        ((255, 0, 0, 0), lab_to_srgb(50, -20, -30)),
    ):
        path = written(Image.new("CMYK", (2, 2), ink), tmp_path / "a.tiff", icc.cmyk_profile(corners))
        assert np.abs(load_image(path)[:, 0, 0].numpy() - np.array(expected)).max() <= 1, ink


def lab_to_srgb(lightness: float, a: float, b: float) -> np.ndarray:
    """CIE 1976 L*a*b* relative to D50."""
    f = (lightness + 16) / 116 + np.array([a / 500, 0, -b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * np.array(icc.D50)
    return icc.srgb_encode(np.linalg.inv(icc.SRGB) @ xyz) * 255


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (b"rubbish" * 30, "cannot open profile"),
        (icc.rgb_profile(icc.DISPLAY_P3, None)[:200], "cannot open profile"),
        (icc.profile("RGB ", {}), "cannot build transform"),
        (icc.gray_profile(2.2), "one of GRAY in an image of RGB"),
    ],
)
def test_a_broken_profile_is_one_line(
    profile: bytes, reason: str, colors: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(Image.fromarray(colors), tmp_path / "a\nb.png", profile)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert np.array_equal(load_image(path).permute(1, 2, 0).numpy(), colors)
    assert len(caplog.messages) == 1
    message = caplog.messages[0]
    assert message.startswith(str(tmp_path / "a\\nb.png: expected a color profile that can be used, got "))
    assert reason in message
    assert "\n" not in message


def test_a_profile_with_a_part_missing_is_broken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 16), (200, 100, 50)).save(path, icc_profile=icc.rgb_profile(icc.DISPLAY_P3, None), quality=95)
    content = path.read_bytes()
    assert content.count(b"ICC_PROFILE\0\1\1") == 1
    path.write_bytes(content.replace(b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\1\2"))
    assert (load_image(path)[:, 8, 8].int() - torch.tensor([200, 100, 50])).abs().max() <= 1
    assert caplog.messages == [
        f"{path}: expected a color profile that can be used, got an incomplete one; its values are taken as sRGB"
    ]
