"""Reward feedback learning: Eq. 1 and 2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finpercep.data.randomness import integer, seed_of, seeded
from finpercep.rewards import Reward
from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import clean
from finpercep.rl.experience import Experience
from finpercep.rl.generators import Generator
from finpercep.rl.generators.pretrain import flow_matching_loss
from finpercep.rl.rollout import sample, sample_generators
from finpercep.rl.scores import score

WEIGHTINGS = ("relu", "identity")


@dataclass(frozen=True)
class ReFLConfig:
    """Options of ReFL.

    Attributes:
        steps: of the sampler.
        late: one of the last `late` steps is drawn; the steps before it have no gradient.
        weight: λ of Eq. 2.
        weighting: φ: "relu" is relu(target - R), "identity" is -R.
        target: above it a reward is good enough ("relu").
        pretrain: add the pre-training term, which needs photos. Without it the generator drifts away from photos.
        micro_batch: samples in a forward pass of training.
    """

    steps: int = 3
    late: int = 2
    weight: float = 1.0
    weighting: str = "relu"
    target: float = 1.0
    pretrain: bool = True
    micro_batch: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.late <= self.steps:
            raise ValueError(f"late: expected 1 to {self.steps}, the number of steps, got {self.late}")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting: expected one of {', '.join(WEIGHTINGS)}, got {self.weighting!r}")


class ReFL:
    """min λ·E[φ(R(D(x̂0)))] + E|ε - ε_θ|² on photos, with x̂0 = x - s·v at a random late step (Eq. 1)."""

    def __init__(self, generator: Generator, config: ReFLConfig, seed: int = 0) -> None:
        self.generator, self.config, self.seed = generator, config, seed

    def collect(self, batch: Batch, reward: Reward, step: int) -> Experience:
        """Sample without gradient to a late step, the same for the whole batch."""
        if self.config.pretrain and batch.photo is None:
            raise ValueError("pretrain: expected photos beside the low-resolution images, got none; or turn it off")
        draw = seeded(self.seed, "refl", step)
        at = integer(self.config.steps - self.config.late, self.config.steps - 1, draw)
        draws = sample_generators(batch.ids, self.seed, "noise", step)
        x = sample(self.generator, batch, self.config.steps, draws, stop=at)
        s = self.generator.steps(self.config.steps).s[at]
        # Of the pre-training term, for each row: it does not depend on the micro-batch or the process it is in.
        seeds = torch.tensor([seed_of(self.seed, "pretrain", step, image) for image in batch.ids.tolist()])
        levels = torch.full((len(x),), s, device=x.device, dtype=x.dtype)
        return Experience(batch, {"x": x, "s": levels, "seed": seeds}, reward=reward)

    def loss(self, part: Experience) -> dict[str, Tensor]:
        """The terms of Eq. 2; "loss" is what to minimize.

        Raises:
            ValueError: the reward does not let gradients through.
        """
        config, generator, reward = self.config, self.generator, part.reward
        assert reward is not None  # `collect` has put it there
        x, s = part.tensors["x"], part.tensors["s"]
        condition = generator.condition(part.batch)
        x0 = clean(x, s, generator.velocity(x, s, condition))
        rewards = score(reward, generator.decode(x0, condition), part.batch).score
        if not rewards.requires_grad:
            raise ValueError(
                f"reward: ReFL needs a reward with gradients to the pixels, got scores without from "
                f"{type(reward).__name__}; use grpo, dpo or nft for it"
            )
        weighted = torch.relu(config.target - rewards) if config.weighting == "relu" else -rewards
        terms = {"policy_loss": weighted.mean(), "reward_avg": rewards.detach().mean()}
        loss = config.weight * terms["policy_loss"]
        if config.pretrain:
            draws = [torch.Generator().manual_seed(seed) for seed in part.tensors["seed"].tolist()]
            terms["pretrain_loss"] = flow_matching_loss(generator, part.batch, draws)
            loss = loss + terms["pretrain_loss"]
        return {"loss": loss, **terms}
