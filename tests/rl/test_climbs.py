"""The climb test of a run's reward on its held-out results."""

from __future__ import annotations

import pytest
import torch

from finpercep.models import RewardOutput
from finpercep.rl.climbs import check_climb, climb_results
from tests.rl.toy import Given, Red


class Brightness(torch.nn.Module):
    """The mean, along which Adam moves all pixels alike."""

    fingerprint = "brightness"

    def forward(self, images):
        return RewardOutput(images.flatten(1).mean(1), None)


class WithLR(Red):
    takes = ("lr",)


def test_results_climb_by_their_own_numbers():
    """Fifty steps of 0.001 each; the darker photo is passed after 10 of them, the brighter one never."""
    images = torch.full((2, 3, 16, 16), 100 / 255)
    photos = torch.stack([images[0] + 0.01, images[0] + 0.2])
    photos = (photos * 255).round() / 255  # by 3 and 51 levels
    found = climb_results(Brightness(), images, photos, torch.ones(2, dtype=torch.bool), torch.device("cpu"))
    assert [one.scene for one in found] == ["0", "1"]
    assert [one.start for one in found] == pytest.approx([100 / 255] * 2)
    assert [one.photo for one in found] == pytest.approx([103 / 255, 151 / 255])
    assert [one.end for one in found] == pytest.approx([100 / 255 + 0.05] * 2, abs=1e-5)
    assert [one.passed for one in found] == [12, None]


def test_the_shift_of_a_camera_is_no_severity(make_photo):
    photos = torch.stack([make_photo(64, 64, seed=1)] * 2)
    images = 0.6 * photos + 0.4 * photos.roll(1, -1)
    strict, lenient = climb_results(Brightness(), images, photos, torch.tensor([True, False]), torch.device("cpu"))
    assert lenient.severity_start < 0.9 * strict.severity_start


def test_rewards_that_cannot_be_climbed():
    photo = torch.rand(1, 3, 8, 8)
    check_climb({"red": Red()}, photo)
    for reward in (Given([0.5]), WithLR()):
        with pytest.raises(ValueError, match=r"^monitors.climb: expected rewards of images alone.* or 0, got it$"):
            check_climb({"red": Red(), "it": reward}, photo)
