"""Models: encoders, the FPN decoder, the score head and the reward model made of them."""

from finpercep.models.checkpoint import available_models
from finpercep.models.reward_model import RewardModel, RewardOutput
from finpercep.models.scoring import worst_mean

__all__ = ["RewardModel", "RewardOutput", "available_models", "worst_mean"]
