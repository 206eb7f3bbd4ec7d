import io

import numpy as np
import pytest
import torch
from PIL import Image

from finpercep.data import SYNTHETIC_SOURCES, jpeg, resize, synthetic_source
from finpercep.data.image_ops import gaussian_blur
from finpercep.data.sources.quilting import _quilt


@pytest.mark.parametrize("name", sorted(SYNTHETIC_SOURCES))
def test_source_keeps_shape_and_range_and_is_seeded(name, photo):
    first, again, other = (synthetic_source(name, photo, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == photo.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.003 < (first - photo).abs().mean() < 0.3  # a fault, and still the same picture


@pytest.mark.parametrize("name", sorted(SYNTHETIC_SOURCES))
@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1)])
def test_thin_images(name, size):
    photo = torch.rand(3, *size, generator=torch.Generator().manual_seed(2))
    for seed in range(4):
        made = synthetic_source(name, photo, torch.Generator().manual_seed(seed))
        assert made.shape == photo.shape
        assert made.isfinite().all()


@pytest.mark.parametrize("name", sorted(SYNTHETIC_SOURCES))
def test_the_number_of_threads_changes_no_bit(name, photo):
    """Processes that load triplets have one thread; a run that is resumed with others must draw the same."""
    threads = torch.get_num_threads()
    try:
        made = []
        for count in (1, 2):
            torch.set_num_threads(count)
            made.append(synthetic_source(name, photo[..., :32], torch.Generator().manual_seed(0)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*made)


def test_reinvented_texture_is_as_strong_and_another(photo):
    made = synthetic_source("reinvented", photo, torch.Generator().manual_seed(2))
    fine, invented = (image - gaussian_blur(image, 0.8) for image in (photo, made))
    assert 0.6 < invented.std() / fine.std() < 1.6
    assert (gaussian_blur(made, 3.0) - gaussian_blur(photo, 3.0)).abs().mean() < 0.01  # what is coarse stays
    together = (fine * invented).mean() / (fine.std() * invented.std())
    assert 0.1 < together < 0.9


def test_wobbly_lines_are_bent():
    lines = torch.zeros(3, 64, 64)
    lines[:, :, 30:33] = 1
    made = synthetic_source("wobbly", lines, torch.Generator().manual_seed(0))
    columns = torch.arange(64.0)
    center = (made[0].clamp(0.2) - 0.2).mul(columns).sum(1) / (made[0].clamp(0.2) - 0.2).sum(1)
    straight = (lines[0] * columns).sum(1) / lines[0].sum(1)
    assert 0.3 < (center - straight).std() < 2.5


def test_quilted_detail_is_the_photos_own_from_elsewhere():
    noise = torch.randn(1, 96, 96, generator=torch.Generator().manual_seed(0))
    photo = (0.5 + 0.15 * gaussian_blur(noise.expand(3, -1, -1), 0.7)).clamp(0, 1)
    for seed in range(4):
        made = synthetic_source("quilted", photo, torch.Generator().manual_seed(seed))
        fine, invented = (image - gaussian_blur(image, 0.8) for image in (photo, made))
        assert 0.5 < invented.std() / fine.std() < 1.3
        together = (fine * invented).mean() / (fine.std() * invented.std())
        assert together < 0.5  # wide sigmas move more than 0.8, and some of it may be kept
        assert (gaussian_blur(made, 4.0) - gaussian_blur(photo, 4.0)).abs().mean() < 0.01


def test_a_quilt_of_a_periodic_photo_is_the_photo():
    """Pieces are found by what is coarser, wherever they are: one period on, everything is the same again."""
    rows = torch.arange(96)
    photo = (0.5 + 0.2 * torch.sin(rows[:, None] * torch.pi / 8) * torch.sin(rows * torch.pi / 8)).expand(3, -1, -1)
    photo = photo + 0.05 * torch.sin(rows * torch.pi / 2)[:, None]
    base = gaussian_blur(photo, 1.5)
    made = _quilt(base, (base, photo - base), 8, 1.5, torch.Generator().manual_seed(0), same=True)
    inner = slice(16, -16)
    error = (made - (photo - base))[:, inner, inner]
    assert error.std() < 0.01 * (photo - base)[:, inner, inner].std()


def test_a_pattern_repeats_and_may_be_all_there_is():
    flat = torch.full((3, 48, 48), 0.5)
    for seed in range(20):
        made = synthetic_source("patterned", flat, torch.Generator().manual_seed(seed))
        assert any(
            torch.equal(made[:, rows:, columns:], made[:, :-rows, :-columns])
            for rows in range(1, 9)
            for columns in range(1, 9)
        )
    ramp = torch.linspace(0, 1, 48).expand(3, 48, 48)
    left = []
    for seed in range(40):
        made = synthetic_source("patterned", ramp, torch.Generator().manual_seed(seed))
        # What is left of the ramp, where nothing clips: both halves have every phase of the pattern.
        left.append(float(made[..., 24:].mean() - made[..., :24].mean()) / 0.5)
    assert min(left) < 0.2
    assert max(left) > 0.95


def test_unknown_source(photo):
    with pytest.raises(ValueError, match=r"source: expected one of .*'smooth'.*got 'magic'"):
        synthetic_source("magic", photo, torch.Generator())


def test_jpeg_is_pillows(photo):
    pixels = (photo * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=60)
    expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255
    assert torch.equal(jpeg(photo, 60), expected)


def test_blur_keeps_the_mean_and_spreads_a_point():
    point = torch.zeros(3, 21, 21)
    point[:, 10, 10] = 1
    blurred = gaussian_blur(point, 1.5)
    axis = torch.arange(21) - 10.0
    variance = (blurred[0].sum(0) * axis**2).sum() / blurred[0].sum()
    assert blurred[0].sum() == pytest.approx(1, abs=1e-5)
    assert variance.item() == pytest.approx(1.5**2, rel=0.05)
    assert gaussian_blur(torch.ones(3, 1, 1), 2.0).tolist() == torch.ones(3, 1, 1).tolist()


def test_resize_keeps_flat_images(photo):
    assert torch.allclose(resize(torch.full((3, 20, 30), 0.4), (7, 5)), torch.full((3, 7, 5), 0.4))
    assert resize(photo, (32, 48), "nearest").shape == (3, 32, 48)
