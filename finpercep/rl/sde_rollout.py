"""Rollouts by the SDE of Eq. 4: results, and the random steps that were taken on the way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from finpercep import ops
from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import Steps, euler, placed
from finpercep.rl.generators import Generator
from finpercep.rl.rollout import portions


@torch.no_grad()
def sde_rollout(
    generator: Generator,
    batch: Batch,
    x: Tensor,
    draws: list[torch.Generator],
    count: int,
    window: tuple[int, int],
    *,
    noise_level: float,
    kind: str,
    at_once: int = 0,
) -> tuple[dict[str, Tensor], Tensor]:
    """Sample from noise; the T steps inside of a window are random, the others deterministic.

    Args:
        generator: whose velocity and steps.
        batch: of the B results.
        x: noise (B,C,h,w) at the sampler's first level.
        draws: CPU generators of the steps' noise, one for each result; they go on.
        count: steps of the sampler.
        window: first and behind-last random step.
        noise_level, kind: of `ops.sde_step`.
        at_once: results that are sampled and decoded at once, 0 for all.

    Returns:
        The steps that were taken: "x" and what it became, "next", (B,T,C,h,w); levels "s", "s_next" and "std" (B,T);
        and the images (B,3,H,W), in [0, 1].
    """
    options = {"noise_level": noise_level, "kind": kind}
    found = [
        _sampled(generator, batch[rows], x[rows], draws[rows], generator.steps(count), window, options)
        for rows in portions(len(batch), at_once)
    ]
    taken = {name: torch.cat([part[name] for part, _ in found]) for name in found[0][0]}
    return taken, torch.cat([images for _, images in found])


def _sampled(
    generator: Generator,
    batch: Batch,
    x: Tensor,
    draws: list[torch.Generator],
    steps: Steps,
    window: tuple[int, int],
    options: dict[str, Any],
) -> tuple[dict[str, Tensor], Tensor]:
    condition = generator.condition(batch)
    first, end = window
    taken: dict[str, list[Tensor]] = {"x": [], "next": [], "s": [], "s_next": [], "std": []}
    for at, (s, s_next) in enumerate(pairwise(steps.s)):
        s_rows, next_rows = (torch.full((len(x),), level, device=x.device, dtype=x.dtype) for level in (s, s_next))
        v = generator.velocity(x, s_rows, condition)
        if not first <= at < end:
            x = euler(x, s, s_next, v)
            continue
        noise = placed(torch.stack([torch.randn(x.shape[1:], generator=draw) for draw in draws]), x)
        after = ops.sde_step(v, x, s, s_next, noise=noise, return_mean=False, **options)
        for name, value in zip(taken, (x, after.next_sample, s_rows, next_rows, after.std), strict=True):
            taken[name].append(value)
        x = after.next_sample
    return {name: torch.stack(values, 1) for name, values in taken.items()}, generator.decode(x, condition)


def mean_std(steps: Steps, *, noise_level: float, kind: str) -> float:
    """Mean of `SDEStep.std` over all steps of a sampler but the last."""
    stds = step_stds(steps.s, noise_level=noise_level, kind=kind)
    return float(torch.tensor(stds, dtype=torch.float64).mean())


def step_stds(levels: Sequence[float], *, noise_level: float, kind: str) -> list[float]:
    """`SDEStep.std` of all steps of a sampler but the last, by its levels."""
    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    options: dict[str, Any] = {"noise_level": noise_level, "kind": kind, "noise": nothing}
    given = [[torch.tensor([level], dtype=torch.float64) for level in pair] for pair in pairwise(levels[:-1])]
    return [float(ops.sde_step(nothing, nothing, *pair, **options).std) for pair in given]
