"""Groups whose rewards differ by rounding, and what their advantages sum to: the same checks for every backend."""

from __future__ import annotations

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


def check_resolution(backend: str, dtype: torch.dtype, labelled: bool) -> None:
    """Below 1 numbers are half a unit apart: a range of the resolution is rounding, half a unit more is not."""
    unit = torch.finfo(dtype).eps
    widest = 1 - UNITS[dtype] * unit
    rewards = torch.tensor([1, widest, 1, widest - unit / 2, -widest, -1, unit**2, -(unit**2)], dtype=dtype)
    advantages, stats = group_advantage(rewards, eps=0.0, backend=backend, **groups_of(rewards, 2, labelled))
    assert advantages.tolist() == [0.0, 0.0, 1.0, -1.0, 0.0, 0.0, 1.0, -1.0]
    assert [int(s) for s in stats[:4]] == [4, 2, 0, 0]


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
