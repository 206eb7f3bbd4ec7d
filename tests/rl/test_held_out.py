"""Held-out measures by value."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from finpercep.data.features.filter_bank import FilterBank
from finpercep.models import RewardOutput, worst_mean
from finpercep.rewards import Mixture, StageReward
from finpercep.rl.held_out import HeldOut, psnr, severity
from finpercep.rl.monitors import recompressed
from finpercep.rl.photos import load_pairs
from finpercep.rl.scores import as_file
from tests.rl.toy import Green, Red


def test_values(photo_set):
    held = HeldOut(load_pairs([photo_set], "val", 4), 32, 4, 3)
    photo, cpu = held.batch.photo, torch.device("cpu")
    worse = photo * 0.9
    figures = held.measure(worse, Red(), cpu)
    expected = -10 * torch.log10((0.1 * photo).square().flatten(1).mean(1)).mean()
    assert float(figures["psnr"].mean()) == pytest.approx(float(expected), abs=1e-4)
    rounded = (worse * 255).round() / 255
    assert float(figures["reward_avg"].mean()) == pytest.approx(float(rounded[:, 0].mean()), abs=1e-6)
    assert float(figures["severity"].mean()) > 0
    assert severity(photo, photo, FilterBank()).tolist() == [0.0, 0.0]
    assert psnr(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.1)).item() == pytest.approx(20.0)


def test_the_shift_of_a_camera_is_no_severity(camera_set):
    held = HeldOut(load_pairs([camera_set], "val", 4), 32, 4, 3)
    assert held.aligned.tolist() == [False, True]
    moved = 0.6 * held.photo + 0.4 * held.photo.roll(1, -1)
    found = held.measure(moved, Red(), torch.device("cpu"))["severity"]
    strict, lenient = (severity(moved, held.photo, FilterBank(), same) for same in (True, False))
    assert found.tolist() == pytest.approx([float(lenient[0]), float(strict[1])])
    assert lenient[0] < strict[0]


class Blue(Red):
    """How red; the map is how blue."""

    def __call__(self, images):
        return RewardOutput(super().__call__(images).score, images[:, 2:])


def test_jpeg_and_the_map(photo_set):
    """By a reward of one part in red and a map in green, inside of a stage and of a mixture of two."""
    held = HeldOut(load_pairs([photo_set], "val", 4), 32, 4, 3, size=1)
    images, cpu = as_file(0.9 * held.batch.photo), torch.device("cpu")
    red, faults = images[:, 0].flatten(1).mean(1), worst_mean(images[:, 1:2])
    stage = StageReward(Green(), 0.25, 0.5)
    found = held.measure(images, stage, cpu)
    rewards = 0.25 * red + 0.5 * (1 - faults)
    torch.testing.assert_close(found["reward_avg"], rewards)
    torch.testing.assert_close(found["score_map_gap"], (red - (1 - faults)).abs())
    coded = recompressed(images)
    coded_rewards = 0.25 * coded[:, 0].flatten(1).mean(1) + 0.5 * (1 - worst_mean(coded[:, 1:2]))
    torch.testing.assert_close(found["jpeg_share"], (rewards - coded_rewards) / rewards.mean())
    assert found["jpeg_share"].abs().min() > 1e-4
    parts = {"other": StageReward(Blue()), "stage": stage, "plain": Red()}
    mixed = held.measure(images, Mixture({name: (part, 0.5) for name, part in parts.items()}), cpu)
    assert torch.equal(mixed["score_map_gap"], found["score_map_gap"])
    assert "score_map_gap" not in held.measure(images, Red(), cpu)


def test_photos_that_are_too_small(photo_set):
    pairs = load_pairs([photo_set], "val", 4)
    with pytest.raises(ValueError, match=r"lr\.png, gt\.png: expected sides of at least 96 to measure on, got 64x64$"):
        HeldOut(pairs, 96, 4, 3)


def test_an_exact_match_is_a_number():
    photo = torch.rand(1, 3, 2, 2)
    assert psnr(photo, photo).item() == pytest.approx(100.0)


def test_extras_come_with_held_out_photos(photo_set):
    """Those that all pairs have; images whose latents are given are used whole."""
    pairs = load_pairs([photo_set], "val", 4)
    for number, pair in enumerate(pairs):
        pair.extras = {name: partial(torch.full, (2, 2), float(number)) for name in ("latent_lr", "prompt_embeds")}
    held = HeldOut(pairs, 64, 4, 3)
    assert held.batch.extras["latent_lr"][:, 0, 0].tolist() == [0.0, 1.0]
    assert torch.equal(held.batch.photo, torch.stack([pair.photo for pair in pairs]).float() / 255)
    with pytest.raises(ValueError, match=r"^side: expected 64 x 64 as .*gt\.png, whose latents are given, got 32$"):
        HeldOut(pairs, 32, 4, 3)
    pairs[0].extras = {"prompt_embeds": pairs[0].extras["prompt_embeds"]}
    assert list(HeldOut(pairs, 64, 4, 3).batch.extras) == ["prompt_embeds"]
