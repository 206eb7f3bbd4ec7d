"""Rewards: one protocol, the curriculum's stage reward, mixtures, LR consistency, adapters in and doors out."""

from finpercep.rewards.adapters import FunctionReward, PyIQAReward
from finpercep.rewards.augmented import Augmented
from finpercep.rewards.consistency import LRConsistency
from finpercep.rewards.load import load_reward
from finpercep.rewards.mixture import Mixture
from finpercep.rewards.protocol import Reward, call_reward
from finpercep.rewards.remote import RemoteReward
from finpercep.rewards.stage import StageReward

__all__ = [
    "Augmented",
    "FunctionReward",
    "LRConsistency",
    "Mixture",
    "PyIQAReward",
    "RemoteReward",
    "Reward",
    "StageReward",
    "call_reward",
    "load_reward",
]
