"""Overlays: clean areas keep the photo, degraded ones take the colors, files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finpercep.io import pictures as module
from finpercep.io.pictures import color_table, colorize, outlined, overlay, save_image


def pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def test_color_table_gets_lighter_all_the_way() -> None:
    table = color_table()
    assert table.shape == (256, 3)
    assert table.dtype == np.uint8
    linear = np.where(table <= 10, table / 255 / 12.92, ((table / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -1e-3).all()
    assert luminance[-1] - luminance[0] > 0.8
    assert np.abs(np.diff(table.astype(int), axis=0)).max() <= 12  # no step that would look like an edge
    assert table[0].tolist() == [0x2B, 0x0B, 0x57]
    assert table[255].tolist() == [0xFF, 0xF3, 0xA6]


def test_clean_shows_the_photo_and_degraded_the_color(photo_u8: torch.Tensor) -> None:
    heat = torch.zeros(1, 64, 96)
    heat[:, :, 48:] = 1
    out = pixels(overlay(photo_u8, heat, strength=1.0))
    assert torch.equal(out[:, :, :48], photo_u8[:, :, :48])
    assert (out[:, :, 48:] == torch.tensor([0xFF, 0xF3, 0xA6])[:, None, None]).all()


def test_more_degraded_means_more_color(photo_u8: torch.Tensor) -> None:
    change = [
        (pixels(overlay(photo_u8, torch.full((64, 96), v))).int() - photo_u8).abs().float().mean()
        for v in (0.0, 0.05, 0.3, 1.0)
    ]
    assert change[0] == 0
    assert change == sorted(change)


def test_float_and_uint8_photos_agree(photo_u8: torch.Tensor) -> None:
    heat = torch.rand(64, 96, generator=torch.Generator().manual_seed(1))
    difference = pixels(overlay(photo_u8, heat)).int() - pixels(overlay(photo_u8 / 255, heat)).int()
    assert difference.abs().max() <= 1


def test_strips_do_not_show(photo_u8: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    heat = torch.rand(64, 96, generator=torch.Generator().manual_seed(1))
    whole = pixels(overlay(photo_u8, heat))
    monkeypatch.setattr(module, "_STRIP_PIXELS", 96 * 5)
    assert torch.equal(pixels(overlay(photo_u8, heat)), whole)


def test_colorize_looks_up_the_table() -> None:
    heat = torch.tensor([[0.0, 0.5, 1.0]])
    assert np.array_equal(np.array(colorize(heat))[0], color_table()[[0, 128, 255]])


@pytest.mark.parametrize(
    ("heat", "reason"),
    [
        (torch.zeros(1, 64, 95), "expected the image's 64x96, got 64x95"),
        (torch.full((64, 96), float("nan")), "NaN"),
        (torch.zeros(2, 64, 96), "got shape (2, 64, 96)"),
    ],
)
def test_bad_maps(heat: torch.Tensor, reason: str, photo_u8: torch.Tensor) -> None:
    with pytest.raises(ValueError) as error:
        overlay(photo_u8, heat)
    assert str(error.value).startswith("degradation: expected")
    assert reason in str(error.value)


def test_save_makes_folders_and_keeps_values(tmp_path: Path, photo_u8: torch.Tensor) -> None:
    picture = overlay(photo_u8, torch.zeros(64, 96))
    path = save_image(picture, tmp_path / "a" / "b.png")
    assert torch.equal(pixels(Image.open(path)), photo_u8)
    assert [p.name for p in path.parent.iterdir()] == ["b.png"]


def test_the_outline_of_a_mask_is_two_pixels_wide_and_inside_is_untouched() -> None:
    mask = torch.zeros(1, 16, 20)
    mask[:, 4:12, 6:16] = 1
    drawn = pixels(outlined(Image.new("RGB", (20, 16), (9, 9, 9)), mask))
    changed = (drawn != 9).any(0)
    expected = torch.zeros(16, 20, dtype=torch.bool)
    expected[3:13, 5:17] = True
    expected[5:11, 7:15] = False
    assert torch.equal(changed, expected)
    assert drawn[:, 3, 5].tolist() == [0, 194, 215]


def test_pictures_of_what_is_being_trained(photo: torch.Tensor) -> None:
    heat = torch.rand(1, *photo.shape[1:])
    leaf = photo.clone().requires_grad_()
    assert torch.equal(pixels(overlay(leaf, heat)), pixels(overlay(photo, heat)))
    assert torch.equal(pixels(module.as_picture(leaf)), pixels(module.as_picture(photo)))


@pytest.mark.parametrize("name", ["a.webp", "a", "a.map.tif"])
def test_only_what_is_written_may_be_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a name that ends in \.png, \.jpg or \.jpeg$"):
        save_image(Image.new("RGB", (2, 2)), tmp_path / "new" / name)
    assert not (tmp_path / "new").exists()
