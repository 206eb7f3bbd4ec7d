"""Damage that is the same in every run, and no larger than its name says."""

from __future__ import annotations

import pytest
import torch

from benchmarks.slight_damage import DAMAGE


@pytest.fixture
def photo(make_photo) -> torch.Tensor:
    return (make_photo(32, 40, seed=0) * 255).round() / 255


def test_every_damage_is_deterministic_and_an_image(photo) -> None:
    for name, damage in DAMAGE.items():
        once = damage(photo)
        assert torch.equal(once, damage(photo)), name
        assert once.shape == photo.shape, name
        assert once.min() >= 0, name
        assert once.max() <= 1, name
        assert not torch.equal(once, photo), name


def test_what_8_bits_do_not_hold(photo) -> None:
    inner = photo.clamp(2 / 255, 253 / 255)
    stored = {n: (DAMAGE[f"checkerboard of 1 px, ±{n}"](inner) * 255).round() for n in ("0.4 levels", "1 level")}
    assert torch.equal(stored["0.4 levels"], (inner * 255).round())
    assert (stored["1 level"] - inner * 255).abs().round().unique().tolist() == [1.0]


def test_dither_keeps_the_mean_and_few_levels() -> None:
    gray = torch.full((3, 32, 32), 0.3)
    dithered = DAMAGE["16 levels, dithered"](gray)
    assert (dithered.unique() * 15).tolist() == pytest.approx([4, 5])
    assert dithered.mean().item() == pytest.approx(0.3, abs=0.01)


def test_contrast_and_sharpening_move_away_from_gray_and_blur(photo) -> None:
    middle = photo.clamp(0.2, 0.8)
    assert torch.allclose(DAMAGE["contrast of 1.2"](middle) - 0.5, 1.2 * (middle - 0.5), atol=1e-6)
    step = torch.full((3, 16, 16), 0.4)
    step[..., 8:] = 0.6
    sharper = DAMAGE["sharpened by 0.5"](step)
    assert sharper[0, 8, 8] > 0.62
    assert sharper[0, 8, 7] < 0.38
    assert sharper[0, 8, 0] == pytest.approx(0.4, abs=1e-4)
