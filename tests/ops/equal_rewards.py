"""Groups whose rewards are equal up to a resolution, and what advantages sum to: the same checks for every backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from finpercep.ops import group_advantage

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SCALES = ("group", "batch", "none")
UNITS = {torch.float32: 4, torch.float64: 4, torch.bfloat16: 1, torch.float16: 1}  # of the last place, still equal


def groups_of(rewards: Tensor, size: int, labelled: bool) -> dict:
    """Of `size` in a row, by their size or by ids."""
    return {"group_ids": torch.arange(len(rewards)) // size - 2**62} if labelled else {"group_size": size}


def check_one_unit(backend: str, dtype: torch.dtype, labelled: bool) -> None:
    """A group that differs by one unit in the last place gets exact zeros, whatever divides; its neighbor does not."""
    equal = torch.full((8,), 0.7, dtype=dtype)
    equal[0] = torch.nextafter(equal[0], torch.ones((), dtype=dtype))
    rewards = torch.cat([equal, torch.arange(8, dtype=dtype) / 8, -equal])
    for scale in SCALES:
        for correction in (0, 1):
            advantages, stats = group_advantage(
                rewards, eps=0.0, scale=scale, correction=correction, backend=backend, **groups_of(rewards, 8, labelled)
            )
            assert not advantages[:8].any()
            assert not advantages[16:].any()
            assert (advantages[8:16] != 0).all()
            assert [int(s) for s in stats[:4]] == [3, 2, 0, 0]
            spread = (torch.arange(8) / 8).std(correction=correction)  # the two other groups have none
            torch.testing.assert_close(stats.reward_std.float(), spread / 3)


def check_default_resolution(backend: str, dtype: torch.dtype, labelled: bool) -> None:
    """Below 1 numbers are half a unit apart: a range of the resolution is rounding, half a unit more is not."""
    unit = torch.finfo(dtype).eps
    widest = 1 - UNITS[dtype] * unit
    rewards = torch.tensor([1, widest, 1, widest - unit / 2, -widest, -1, unit**2, -(unit**2)], dtype=dtype)
    advantages, stats = group_advantage(rewards, eps=0.0, backend=backend, **groups_of(rewards, 2, labelled))
    assert advantages.tolist() == [0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 1.0, -1.0]
    assert [int(s) for s in stats[:4]] == [4, 2, 0, 0]


def check_resolution(backend: str, dtype: torch.dtype, labelled: bool) -> None:
    """Ranges beside resolutions that are named, from that of a last place at 0 to almost the largest magnitude."""
    unit = torch.finfo(dtype).eps
    pairs = [1, 1 - 2**-5, 1, 1 - unit / 2, 3, 3, math.nan, math.nan, math.inf, 1, 0, -1]  # unit / 2: the smallest step
    rewards = torch.tensor(pairs, dtype=dtype)
    for resolution, lively in ((0.0, [0, 1, 5]), (2**-5 - 2**-20, [0, 5]), (2**-5, [5]), (0.75, [5])):
        for scale in SCALES:
            advantages, stats = group_advantage(
                rewards, eps=0.0, scale=scale, resolution=resolution, backend=backend, **groups_of(rewards, 2, labelled)
            )
            signs = torch.zeros(12)
            for group in lively:
                signs[2 * group], signs[2 * group + 1] = 1, -1
            assert advantages.sign().tolist() == signs.tolist()
            assert (advantages.view(-1, 2).sum(1) == 0).all()
            if scale == "group":
                assert advantages.tolist() == signs.tolist()
            assert [int(s) for s in stats[:4]] == [6, 4 - len(lively), 2, 3]
            steps = {0: 2**-6, 1: unit / 4, 5: 0.5}
            assert float(stats.reward_std) == pytest.approx(sum(steps[group] for group in lively) / 4)

    # One of 21 stands out: their standard deviation is twice their mean, and yet they are within 0.96 of the largest.
    outlier = torch.full((42,), 0.05, dtype=dtype)
    outlier[7], outlier[30] = 1.0, -0.5
    groups = groups_of(outlier, 21, labelled)
    advantages, stats = group_advantage(outlier, resolution=0.96, backend=backend, **groups)
    assert not advantages[:21].any()
    assert advantages[30] < 0
    assert int(stats.zero_variance) == 1
    advantages, stats = group_advantage(outlier, resolution=0.94, eps=0.0, backend=backend, **groups)
    assert float(advantages[7]) == pytest.approx(math.sqrt(20), rel=1e-5)
    assert int(stats.zero_variance) == 0


def check_noise(backend: str, dtype: torch.dtype, labelled: bool) -> None:
    """Noise of 1e-4 around 0.5 is dead at a resolution of 1e-3 and alive at 0; a spread of 0.1 is alive at both."""
    generator = torch.Generator().manual_seed(5)
    rewards = 0.5 + 1e-4 * torch.rand(48, generator=generator, dtype=torch.float64)
    rewards[24:] = 0.5 + 0.1 * torch.rand(24, generator=generator, dtype=torch.float64)
    rewards[0], rewards[1] = 0.5, 0.5 + 1e-4
    rewards = rewards.to(dtype)
    groups = groups_of(rewards, 24, labelled)
    exact = rewards.double().view(2, 24)
    exact = (exact - exact.mean(1, keepdim=True)) / exact.std(1, correction=0, keepdim=True)
    for resolution, dead in ((1e-3, 1), (0.0, 0)):
        advantages, stats = group_advantage(rewards, eps=0.0, resolution=resolution, backend=backend, **groups)
        expected = exact.clone()
        expected[:dead] = 0
        assert advantages[: 24 * dead].tolist() == [0.0] * 24 * dead
        torch.testing.assert_close(advantages.double().view(2, 24), expected, rtol=1e-5, atol=1e-5)
        assert (advantages.double().view(2, 24).sum(1).abs() <= 1e-5).all()
        assert int(stats.zero_variance) == dead


def check_sum(backend: str, count: int, size: int, labelled: bool) -> None:
    """Advantages sum to 0 within rounding though the mean is rounded by a good part of the spread."""
    noise = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    noise = 0.3 * noise + torch.arange(count) % size * 4 / size  # every group has a spread
    rewards = (0.7 + 1e-6 * noise).float()  # units in the last place of 0.7 are 6e-8
    for scale in SCALES:
        groups = groups_of(rewards, size, labelled)
        advantages, stats = group_advantage(rewards, eps=0.0, scale=scale, backend=backend, **groups)
        exact, _ = group_advantage(rewards.double(), eps=0.0, scale=scale, backend="reference", **groups)
        assert int(stats.zero_variance) == 0
        torch.testing.assert_close(advantages.double() / exact.std(), exact / exact.std(), rtol=1e-5, atol=1e-5)
        sums = advantages.double().view(-1, size)
        assert (sums.sum(1).abs() <= 1e-6 * sums.abs().sum(1)).all()
