"""Every algorithm raises the reward of a toy generator that it can raise."""

from __future__ import annotations

import pytest
import torch

from finpercep.rl.dpo import DPO, DPOConfig
from finpercep.rl.grpo import GRPO, GRPOConfig
from finpercep.rl.nft import NFT, NFTConfig
from finpercep.rl.refl import ReFL, ReFLConfig
from finpercep.rl.rollout import results
from tests.rl.toy import Red, Toy, batch

ALGORITHMS = {
    "refl": (ReFL, ReFLConfig(weight=30.0)),
    "dpo": (DPO, DPOConfig(group_size=6, beta=20.0)),
    "grpo": (GRPO, GRPOConfig(group_size=6)),
    "nft": (NFT, NFTConfig(group_size=6, advantage_clip=2.0)),
}


def reward(generator):
    given = batch(4).repeat(4)
    return float(Red()(results(generator, given, 3, "judge")).score.mean())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_reward_rises(name):
    kind, config = ALGORITHMS[name]
    generator = Toy()
    algorithm = kind(generator, config)
    optimizer = torch.optim.Adam(generator.parameters(), lr=3e-3)
    before = reward(generator)
    for step in range(40):
        experience = algorithm.collect(batch(4), Red(), step)
        optimizer.zero_grad()
        algorithm.loss(experience)["loss"].backward()
        optimizer.step()
    assert reward(generator) > before + 0.02
