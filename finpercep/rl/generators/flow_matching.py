"""The loss that models are pre-trained with: the second term of Eq. 2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import error_weight, mix, placed
from finpercep.rl.generators.protocol import Generator

LEVELS = 64
"""Steps between which `draw_level` interpolates."""


def flow_matching_loss(generator: Generator, batch: Batch, draws: Sequence[torch.Generator]) -> Tensor:
    """E|v_θ(x, s) - (ε - x0)|² on photos: the second term of Eq. 2 in flow coordinates, and pre-training.

    Of a UNet (`kind`) it is the squared error of what that predicts itself, such as E|ε_θ - ε|². s is distributed as
    the sampler's steps are: what is used is what is trained.

    Args:
        generator: with `encode`.
        batch: with photos; rows without one count as 0 in the mean.
        draws: of s and ε, on the CPU, one for each row: no row depends on its batch.

    Returns:
        (), the mean over rows and what the latents have.

    Raises:
        ValueError: a batch without photos.
    """
    if batch.photo is None:
        raise ValueError("batch: expected photos for the pre-training term, got low-resolution images alone")
    condition = generator.condition(batch)
    with torch.no_grad():
        x0 = generator.encode(batch.photo, condition)
        levels = torch.cat([draw_level(generator, draw) for draw in draws])
        noise = torch.stack([torch.randn(x0.shape[1:], generator=draw, dtype=torch.float64) for draw in draws])
        s, epsilon = placed(levels, x0), placed(noise, x0)
    error = (generator.velocity(mix(x0, epsilon, s), s, condition) - (epsilon - x0)).square()
    weight = error_weight(getattr(generator, "kind", ""), s, error)
    error = error if weight is None else weight * error
    return error.mean() if batch.has_photo is None else (error.flatten(1).mean(1) * batch.has_photo).mean()


def draw_level(generator: Generator, draw: torch.Generator) -> Tensor:
    """A noise level (1,) fp64, distributed as those of the generator's sampler."""
    s = torch.tensor(generator.steps(LEVELS).s, dtype=torch.float64)
    at = LEVELS * torch.rand(1, generator=draw, dtype=torch.float64)
    below = at.long()
    return torch.lerp(s[below], s[below + 1], at - below)
