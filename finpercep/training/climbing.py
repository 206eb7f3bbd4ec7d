"""Climbed images as a source of training: what a generator would do to the score, shown to the model beforehand.

An image is moved up the present model's own score. What was won that way is no quality: the climbed image has the level
of its M_gt, which keeps the faults that were there and adds what climbing did, and so has its map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from finpercep.data.image_ops import gaussian_blur
from finpercep.data.randomness import chance, integer, uniform
from finpercep.data.targets import ALPHA, SCALE, fault_target
from finpercep.models import RewardModel
from finpercep.models.evaluation_view import evaluation_view
from finpercep.runs.devices import uploaded

__all__ = [
    "ClimbConfig",
    "Climbs",
    "climb_by",
    "climbed_target",
    "draw_climbs",
    "draw_levels",
    "score_logit",
    "share_of_batch",
]

SMOOTH = 3.0


@dataclass(frozen=True)
class ClimbConfig:
    """How images are climbed. [open] The paper's reward is not trained against its own ascent.

    Attributes:
        climbed: climbed images in a step, as a share of its triplets; each is of a photo, a fault or a whole result.
        climb_networks: images in a step, as a share of its triplets, that small networks change, which learn to
            raise the score and to darken the map (see `ClimbingNetworks`).
        climb_steps: fewest and most steps up the score that an image makes in a training step.
        climb_rate: least and most that a pixel moves in one of them, in levels of 255. Below a level: longer steps
            pass over what a climber finds who has time.
        climb_rounds: training steps that an image climbs in, on average.
        climb_smooth: share of climbs whose steps are blurred, by up to 4 pixels, and `SMOOTH` times as long: what
            outlives JPEG and a resize.
    """

    climbed: float = field(
        default=0.0,
        metadata={
            "help": "Images moved up the model's own score in each step, as a share of --batch: they win nothing."
        },
    )
    climb_networks: float = field(
        default=0.0,
        metadata={
            "help": "Images that small networks change, which learn to raise the model's own score, in each step, as a "
            "share of --batch: as a generator would, where --climbed moves each image by itself."
        },
    )
    climb_steps: tuple[int, int] = (2, 6)
    climb_rate: tuple[float, float] = (0.1, 0.6)
    climb_rounds: int = 8
    climb_smooth: float = 0.25

    def __post_init__(self) -> None:
        for name in ("climb_steps", "climb_rate"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: expected 0 < low <= high, got {(low, high)}")
        if not 0 <= self.climb_networks <= 1:
            raise ValueError(f"climb_networks: expected a share, 0 to 1, got {self.climb_networks}")
        if not 0 <= self.climbed < math.inf or self.climb_rounds < 1 or not 0 <= self.climb_smooth <= 1:
            raise ValueError(
                "climbed, climb_rounds, climb_smooth: expected a number from 0 on, at least 1 and a share, got "
                f"{self.climbed}, {self.climb_rounds} and {self.climb_smooth}"
            )


def share_of_batch(name: str, share: float, batch: int) -> int:
    """How many images of a step a share of its triplets is.

    Raises:
        ValueError: a share above 0 that is half an image or less; `name` names it.
    """
    count = round(share * batch)
    if share and not count:
        raise ValueError(f"{name}: expected a share of the {batch} triplets that is an image, got {share}")
    return count


@dataclass(frozen=True)
class Climbs:
    """How some images are climbed, drawn before it is known who does it.

    Attributes:
        steps: number of steps, of all.
        sizes: (N,) of one step, in [0, 1].
        sigma: of the blur of the steps in pixels, 0 for none.
    """

    steps: int
    sizes: Tensor
    sigma: float

    def __getitem__(self, rows: Tensor) -> Climbs:
        return replace(self, sizes=self.sizes[rows])


def draw_levels(between: tuple[float, float], generator: torch.Generator) -> float:
    """A size in [0, 1], log-uniform between two numbers of levels of 255."""
    low, high = (torch.tensor(levels).log2().item() for levels in between)
    return 2 ** uniform(low, high, generator) / 255


def draw_climbs(config: ClimbConfig, count: int, generator: torch.Generator) -> Climbs:
    """Climbs of `count` images."""
    steps = integer(*config.climb_steps, generator)
    sizes = torch.tensor([draw_levels(config.climb_rate, generator) for _ in range(count)])
    sigma = uniform(0.7, 4.0, generator) if chance(config.climb_smooth, generator) else 0.0
    return Climbs(steps, SMOOTH * sizes if sigma else sizes, sigma)


def climb_by(model: RewardModel, images: Tensor, climbs: Climbs) -> Tensor:
    """Images (B,3,H,W) in [0, 1] moved up the score of the model as it is; (B,3,H,W), not rounded.

    Each step is the sign of the gradient, or the gradient blurred and brought to the same size; the gradient's
    strength plays no part, as in Adam's first steps.
    """
    sizes = uploaded(climbs.sizes.to(images.dtype), images.device).view(-1, 1, 1, 1)
    judge, x = evaluation_view(model), images
    for _ in range(climbs.steps):
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(score_logit(judge(x).score).sum(), x)
        x = (x + sizes * _direction(gradient, climbs.sigma)).clamp(0, 1)
    return x.detach()


def climbed_target(
    before: Tensor,
    after: Tensor,
    target: Tensor,
    bank: Callable[[Tensor], Tensor] | None,
    *,
    alpha: float = ALPHA,
    scale: float = SCALE,
) -> Tensor:
    """M_gt (B,1,H,W) of climbed images: the faults that were there, and what climbing has added to them.

    `bank`, `alpha` and `scale` are those of `fault_target`.
    """
    return torch.maximum(target, fault_target(before, after, bank, alpha=alpha, scale=scale))


def score_logit(score: Tensor) -> Tensor:
    """The logit of a score, what is climbed: near 1 a sigmoid has no gradient left to follow."""
    return score.clamp(1e-30, 1 - 2**-24).logit()


def _direction(gradient: Tensor, sigma: float) -> Tensor:
    if sigma == 0:
        return gradient.sign()
    smooth = gaussian_blur(gradient, sigma)
    return smooth / smooth.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-20)
