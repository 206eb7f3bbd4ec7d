"""Models: encoders, the FPN decoder, the score head and the reward model made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

if TYPE_CHECKING:
    from finpercep.models.averaging import average_weights
    from finpercep.models.base import load_base
    from finpercep.models.checkpoint import available_models
    from finpercep.models.clip_iqa import CLIPIQA
    from finpercep.models.output import RewardOutput
    from finpercep.models.presets import PRESETS
    from finpercep.models.reward_model import RewardModel
    from finpercep.models.scoring import worst_mean

__all__ = [
    "CLIPIQA",
    "PRESETS",
    "RewardModel",
    "RewardOutput",
    "available_models",
    "average_weights",
    "load_base",
    "worst_mean",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "CLIPIQA": "finpercep.models.clip_iqa",
        "PRESETS": "finpercep.models.presets",
        "RewardModel": "finpercep.models.reward_model",
        "RewardOutput": "finpercep.models.output",
        "available_models": "finpercep.models.checkpoint",
        "average_weights": "finpercep.models.averaging",
        "load_base": "finpercep.models.base",
        "worst_mean": "finpercep.models.scoring",
    },
)
