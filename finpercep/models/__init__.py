"""Models: encoders, the FPN decoder, the score head and the reward model made of them."""

from finpercep.models.base import load_base
from finpercep.models.checkpoint import available_models
from finpercep.models.clip_iqa import CLIPIQA
from finpercep.models.reward_model import RewardModel, RewardOutput
from finpercep.models.scoring import worst_mean

__all__ = ["CLIPIQA", "RewardModel", "RewardOutput", "available_models", "load_base", "worst_mean"]
