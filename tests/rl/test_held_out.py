"""Held-out measures by value."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from finpercep.data.features.filter_bank import FilterBank
from finpercep.rl.held_out import HeldOut, psnr, severity
from finpercep.rl.photos import load_pairs
from tests.rl.toy import Red


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
