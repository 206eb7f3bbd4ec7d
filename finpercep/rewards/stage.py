"""The reward of a curriculum's stage: R_k = λ1·S + λ2·(1 - max̂(M)) (supplement, section 5.2)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from finpercep.models import RewardOutput, worst_mean
from finpercep.rewards.protocol import Reward, call_reward, check_higher_better, combined_fingerprint

MAXIMA = ("worst", "max", "soft")
HOTTEST = 1e6
"""Highest temperature: far above the values of a map; there float64 still has nine digits of their mean."""


class StageReward(nn.Module):
    """R_k = λ1·S + λ2·(1 - max̂(M)): the score, and how bad the worst place is.

    Without a map (RM_0) it is S alone, whatever the weights: stages then share one scale.

    Args:
        reward: RM_k.
        score_weight, map_weight: λ1 and λ2. The paper does not give them [open]; one half each keeps R_k in [0, 1].
        maximum: max̂. "worst": mean of the worst `fraction` of pixels, the default, since a single pixel makes a noisy
            gradient; "max": the single worst pixel; "soft": log-mean-exp at `temperature`, whose gradient reaches every
            pixel.
        fraction: of "worst", in (0, 1].
        temperature: of "soft", above 0 and at most 1e6; towards 0 it becomes "max", for large values the mean.

    Raises:
        ValueError: no reward, one whose lower scores are better, an unknown maximum, a weight below 0,
            both 0, or a temperature outside of that.
    """

    def __init__(
        self,
        reward: Reward,
        score_weight: float = 0.5,
        map_weight: float = 0.5,
        *,
        maximum: str = "worst",
        fraction: float = 0.01,
        temperature: float = 0.05,
    ) -> None:
        super().__init__()
        if not callable(reward):
            raise ValueError(f"reward: expected a reward, got {reward!r}; load_reward makes one of a name")
        check_higher_better(reward)
        if maximum not in MAXIMA:
            raise ValueError(f"maximum: expected one of {', '.join(MAXIMA)}, got {maximum!r}")
        if min(score_weight, map_weight) < 0 or not 0 < score_weight + map_weight < math.inf:
            raise ValueError(
                f"score_weight, map_weight: expected 0 or more, not both 0, got {score_weight} and {map_weight}"
            )
        if not 0 < temperature <= HOTTEST:
            raise ValueError(f"temperature: expected more than 0 and at most {HOTTEST:g}, got {temperature}")
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction: expected more than 0 and at most 1, got {fraction}")
        self.reward = reward
        # Floats: an integer of the same value is the same reward, and has to have the same fingerprint.
        self.score_weight, self.map_weight = float(score_weight), float(map_weight)
        self.maximum, self.fraction, self.temperature = maximum, float(fraction), float(temperature)

    @property
    def takes(self) -> tuple[str, ...]:
        """What the reward inside takes."""
        return tuple(getattr(self.reward, "takes", ()))

    @property
    def without_map(self) -> bool:
        """Whether this is a reward model that has no map yet: RM_0."""
        return getattr(self.reward, "has_map", True) is False

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the reward inside and the weights."""
        settings = [self.score_weight, self.map_weight, self.maximum, self.fraction, self.temperature]
        return combined_fingerprint("stage", self.reward.fingerprint, settings)

    def forward(self, images: Tensor, **context: Any) -> RewardOutput:
        """R_k as the score (B,), and the map of the reward inside; differentiable where that reward is."""
        output = call_reward(self.reward, images, context)
        if not isinstance(output.map, Tensor):
            return output
        gain = self.score_weight * output.score + self.map_weight * (1 - self._worst(output.map))
        return RewardOutput(gain, output.map)

    def _worst(self, degradation: Tensor) -> Tensor:
        if self.maximum == "worst":
            return worst_mean(degradation, self.fraction)
        pixels = degradation.flatten(1)
        pixels = pixels if pixels.dtype == torch.float64 else pixels.float()
        if self.maximum == "max":
            return pixels.amax(1)
        scaled = pixels.double() / self.temperature  # float32 would lose the mean at a high temperature
        return (self.temperature * (scaled.logsumexp(1) - math.log(pixels.shape[1]))).to(pixels.dtype)
