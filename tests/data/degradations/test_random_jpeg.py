"""JPEG at a quality that a seed draws."""

from __future__ import annotations

import pytest
import torch

from finpercep.data import RandomJPEG
from finpercep.data.degradations.diff_jpeg import jpeg_each
from tests.conftest import synthetic_photo


def test_the_seed_draws_one_quality_for_the_batch() -> None:
    images = torch.stack([synthetic_photo(48, 64, seed=seed) for seed in range(2)])
    made = RandomJPEG(60, 60)(images, 3)
    assert torch.equal(made, jpeg_each(images, torch.tensor([60.0, 60.0]), differentiable=True))
    change = RandomJPEG()
    for seed in (3, 4):
        drawn = torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        quality = (70 + 25 * drawn).float().expand(2)
        assert torch.equal(change(images, seed), jpeg_each(images, quality, differentiable=True))
    assert not torch.equal(change(images, 3), change(images, 4))


@pytest.mark.parametrize("qualities", [(0, 50), (80, 70), (70, 101)])
def test_qualities_in_order(qualities: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"^quality: expected 1 <= lowest <= highest <= 100, got "):
        RandomJPEG(*qualities)
