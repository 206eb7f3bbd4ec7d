"""Spatial credit: by hand, written out, and by finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finpercep import ops
from finpercep.rewards import Augmented, Mixture, StageReward, load_reward
from finpercep.rl.build import build_curriculum
from finpercep.rl.config import RLConfig, StageConfig
from finpercep.rl.dpo import DPO, DPOConfig
from finpercep.rl.grpo import GRPO, GRPOConfig
from finpercep.rl.nft import NFT, NFTConfig
from finpercep.rl.scores import credit_map
from finpercep.rl.spatial import spatial_advantages
from tests.rl.toy import Green, Red, Toy, batch, check_gradient

CONFIG = GRPOConfig(steps=3, group_size=3, micro_batch=12, clip=0.05)


def test_by_hand():
    """Two results; on the left the first is less degraded by 0.4, on the right both are alike."""
    left = torch.tensor([0.1, 0.5]).view(2, 1, 1, 1).expand(2, 1, 4, 2)
    maps = torch.cat([left, torch.full((2, 1, 4, 2), 0.7)], 3)
    found = spatial_advantages(torch.tensor([1.0, -1.0]), maps, 2, (1, 2), 0.5)
    unit = 0.2 / (0.2 / 2**0.5 + 1e-4)
    torch.testing.assert_close(found, torch.tensor([[1 + 0.5 * unit, 1.0], [-1 - 0.5 * unit, -1.0]]))


def test_equal_maps_give_the_scalar():
    maps = torch.rand(1, 1, 8, 8).repeat(4, 1, 1, 1)
    advantages = torch.tensor([0.5, -0.5, 1.0, -1.0])
    assert torch.equal(spatial_advantages(advantages, maps, 2, (4, 4), 3.0), advantages[:, None].expand(4, 16))


def test_no_weight_is_the_scalar_case_to_the_bit():
    """A reward with a map changes nothing; a weight of next to nothing has the same gradient at the first update."""
    gradients = []
    for reward, weight in ((Red(), 0.0), (Green(), 0.0), (Green(), 1e-12)):
        generator = Toy()
        algorithm = GRPO(generator, replace(CONFIG, map_weight=weight))
        terms = algorithm.loss(algorithm.collect(batch(), reward, 0))
        terms["loss"].backward()
        gradients.append([p.grad for p in generator.parameters()])
    for scalar, same, near in zip(*gradients, strict=True):
        assert torch.equal(scalar, same)
        torch.testing.assert_close(scalar, near)


def test_gradient():
    generator = Toy()
    algorithm = GRPO(generator, replace(CONFIG, map_weight=0.7, beta=0.1))
    experience = algorithm.collect(batch(), Green(), 0)
    assert experience.tensors["advantage"].shape == (12, 36)
    assert experience.tensors["old_log_prob"].shape == (12, 36)
    assert float(algorithm.loss(experience)["ratio"]) == 1.0
    generator.move()
    moved = replace(experience, fresh=False)
    check_gradient(generator, lambda: algorithm.loss(moved)["loss"])


def test_written_out():
    """One row: the clipped surrogate of each position, its limit √positions wider, and their mean."""
    generator = Toy()
    algorithm = GRPO(generator, replace(CONFIG, map_weight=0.7, clip=0.002))
    experience = replace(algorithm.collect(batch(), Green(), 0), fresh=False)
    generator.move(0.05)
    part = next(experience.parts(1))
    rows = part.tensors
    v = generator.velocity(rows["x"], rows["s"], generator.condition(part.batch))
    s, s_next = float(rows["s"]), float(rows["s_next"])
    step = ops.sde_step(v, rows["x"], s, s_next, next_sample=rows["next"])
    density = torch.distributions.Normal(step.mean, float(step.std) * (s - s_next) ** 0.5).log_prob(rows["next"])
    log_prob = density.mean(1).flatten(1)
    ratio = torch.exp(log_prob - rows["old_log_prob"])
    clipped, advantage = ratio.clamp(1 - 0.012, 1 + 0.012), rows["advantage"]
    expected = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
    assert 0 < float((ratio != clipped).double().mean()) < 1
    torch.testing.assert_close(algorithm.loss(part)["loss"], expected)


def test_options():
    with pytest.raises(ValueError, match="map_weight: expected limit clip with spatial credit, got dppo"):
        GRPOConfig(map_weight=1.0, limit="dppo")
    with pytest.raises(ValueError, match="map_weight: expected a reward with a map, got Red without"):
        GRPO(Toy(), replace(CONFIG, map_weight=1.0)).collect(batch(), Red(), 0)


def test_rm_0_of_a_curriculum_has_one_advantage_for_all_positions():
    """Its map comes with a later stage: until then the gradient is that of no spatial credit."""
    base = load_reward("finpercep-tiny/0")
    for algorithm, config in ((GRPO, CONFIG), (NFT, NFTConfig(steps=3, group_size=3)), (DPO, DPOConfig(steps=3))):
        gradients = []
        for weight in (0.0, 0.7):
            generator = Toy()
            one = algorithm(generator, replace(config, map_weight=weight))
            experience = one.collect(batch(), StageReward(base.double()), 0)
            one.loss(experience)["loss"].backward()
            gradients.append([p.grad for p in generator.parameters()])
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)
    config = RLConfig(algorithm=GRPOConfig(map_weight=1.0), stages=(StageConfig("finpercep-tiny/0"),) * 2)
    with pytest.raises(ValueError, match="expected a stage whose reward has a map, got finpercep-tiny/0"):
        build_curriculum(config, {"finpercep-tiny/0": base})
    later = replace(config, stages=(*config.stages, StageConfig("finpercep-tiny/1")))
    rewards = {"finpercep-tiny/0": base, "finpercep-tiny/1": load_reward("finpercep-tiny/1")}
    assert len(build_curriculum(later, rewards).stages) == 3


def test_a_stage_without_map_has_no_credit_beside_a_reward_that_never_has_one():
    """RM_0, alone, in a mixture or in many views, is waited for; a mixture in which no part will have a map is not."""
    scores = {"avg": torch.zeros(2)}
    first = load_reward("finpercep-tiny/0")
    for reward in (
        StageReward(first),
        StageReward(Augmented(first)),
        Mixture({"a": (StageReward(first), 1.0), "b": (Red(), 1.0)}),
    ):
        assert not credit_map(None, reward, scores).any()
    config = RLConfig(algorithm=GRPOConfig(map_weight=1.0))
    with pytest.raises(ValueError, match=r"^algorithm.map_weight: expected a stage whose reward has a map, got"):
        build_curriculum(config, {config.stages[0].reward: Mixture({"a": (first, 1.0), "b": (Red(), 1.0)})})
    with pytest.raises(ValueError, match=r"^map_weight: expected a reward with a map, got Red, Green without"):
        credit_map(None, Mixture({"a": (Red(), 1.0), "b": (Green(), 1.0)}), scores)
