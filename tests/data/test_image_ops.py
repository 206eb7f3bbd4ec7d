"""Blur, resizing and rounding by value."""

import math

import pytest
import torch

from finpercep.data.image_ops import gaussian_blur, jpeg, resize, to_uint8


def test_blur_is_a_gaussian_of_its_width() -> None:
    point = torch.zeros(2, 3, 21, 21)
    point[:, :, 10, 10] = 1
    made = gaussian_blur(point, 2.0)
    assert made.sum((2, 3)).flatten().tolist() == pytest.approx([1.0] * 6)
    for away in range(1, 7):  # as far as 3 sigma
        expected = math.exp(-(away**2) / 8)
        assert (made[1, 2, 10, 10 + away] / made[1, 2, 10, 10]).item() == pytest.approx(expected, abs=1e-5)
        assert made[0, 0, 10 + away, 10] == made[0, 0, 10, 10 + away]
    assert made[0, 0, 10, 17] == 0


def test_resized_pictures_stay_in_range_and_keep_their_mean() -> None:
    """Bicubic resizing overshoots at an edge; without anti-aliasing, one pixel in four would be all there is."""
    edge = torch.zeros(3, 32, 32)
    edge[:, :, 16:] = 1
    larger = resize(edge, (64, 64))
    assert (larger.min(), larger.max()) == (0, 1)
    lines = torch.zeros(1, 32, 32)
    lines[:, ::4] = 1
    for mode in ("bilinear", "bicubic"):
        inner = resize(lines, (8, 8), mode)[:, 2:-2]
        torch.testing.assert_close(inner, torch.full((1, 4, 8), 0.25), atol=0.02, rtol=0)


def test_bytes_are_rounded() -> None:
    values = torch.tensor([0.0, 0.499, 0.501, 254.6, 300.0, -20.0]) / 255
    assert to_uint8(values).tolist() == [0, 0, 1, 255, 255, 0]


def test_jpeg_is_coarser_at_a_lower_quality() -> None:
    image = torch.rand(3, 24, 40, generator=torch.Generator().manual_seed(0))
    errors = [(jpeg(image, quality) - image).abs().mean() for quality in (20, 60, 95)]
    assert errors[0] > errors[1] > errors[2] > 0.001
    assert torch.equal(jpeg(torch.full((3, 16, 16), 51 / 255), 90), torch.full((3, 16, 16), 51 / 255))
