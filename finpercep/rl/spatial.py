"""Spatial credit: an advantage for each position of the latents, by the reward's map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

EPS = 1e-4
"""Added to standard deviations, as in Eq. 5."""


def spatial_advantages(
    advantages: Tensor, maps: Tensor, group_size: int, grid: tuple[int, int], weight: float
) -> Tensor:
    """A(p) = A + γ·(mean M(p) - M(p))/(std + 1e-4): where a result is less degraded than its group there, it gains.

    The mean is over the group, at the same position, and the standard deviation over the group and its positions; so γ
    is in units of Eq. 5. [open: the mean of a result's own map in its place would blame what is difficult for all.]

    Args:
        advantages: (N,), of Eq. 5; groups lie side by side.
        maps: (N,1,H,W), 1 = degraded.
        group_size: rows of a group.
        grid: (h, w) of the latents, to which maps are averaged.
        weight: γ.

    Returns:
        (N, h·w), row-major.
    """
    faults = F.adaptive_avg_pool2d(maps.to(advantages), grid).flatten(1)  # (N,P)
    groups = faults.unflatten(0, (-1, group_size))  # (G,g,P)
    better = groups.mean(1, keepdim=True) - groups
    spread = better.square().mean((1, 2), keepdim=True).sqrt()
    return advantages[:, None] + weight * (better / (spread + EPS)).flatten(0, 1)
