"""Reward feedback learning: Eq. 1 and 2."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from finpercep.data.randomness import integer, seed_of, seeded
from finpercep.rewards import Reward
from finpercep.rl.batch import Batch
from finpercep.rl.checks import at_least_one, finite, not_negative
from finpercep.rl.coordinates import clean, euler
from finpercep.rl.experience import Experience
from finpercep.rl.generators import Generator
from finpercep.rl.generators.flow_matching import flow_matching_loss
from finpercep.rl.rollout import sample, sample_generators
from finpercep.rl.scores import check_finite, check_map, score

WEIGHTINGS = ("relu", "identity")


@dataclass(frozen=True)
class ReFLConfig:
    """Options of ReFL.

    Attributes:
        steps: of the sampler.
        late: one of the last `late` steps is drawn, and x̂0 is predicted there.
        last: K, how many of the steps up to the drawn one have gradient: 1 is ReFL, `late` 1 with K more is DRaFT-K
            (arXiv 2309.17400); with K = `steps` the gradient goes through the whole sampler. Memory grows with K.
        weight: λ of Eq. 2.
        weighting: φ: "relu" is relu(target - R), "identity" is -R.
        target: above it a reward is good enough ("relu").
        map_weight: γ: the gradient that reaches a pixel of the result is multiplied by 1 + γ·(M/mean(M) - 1), M the
            reward's map of it, in [0, 1]. 0 leaves it as it is; at 1 what the map calls clean gets none.
        pretrain: add the pre-training term, which needs photos; images without one count as 0 in its mean. Without it
            the generator drifts away from photos.
        micro_batch: samples in a forward pass of training.
    """

    steps: int = 3
    late: int = 2
    last: int = 1
    weight: float = 1.0
    weighting: str = "relu"
    target: float = 1.0
    map_weight: float = 0.0
    pretrain: bool = True
    micro_batch: int = 8

    def __post_init__(self) -> None:
        at_least_one(self, "micro_batch")
        not_negative(self, "weight")
        finite(self, "target")
        if not 1 <= self.late <= self.steps:
            raise ValueError(f"late: expected 1 to {self.steps}, the number of steps, got {self.late}")
        if not 1 <= self.last <= self.steps - self.late + 1:
            raise ValueError(
                f"last: expected 1 to {self.steps - self.late + 1}, the steps up to the first one that is drawn, got "
                f"{self.last}"
            )
        if not 0 <= self.map_weight <= 1:
            raise ValueError(f"map_weight: expected 0 to 1, got {self.map_weight}")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting: expected one of {', '.join(WEIGHTINGS)}, got {self.weighting!r}")


class ReFL:
    """min λ·E[φ(R(D(x̂0)))] + E|ε - ε_θ|² on photos, with x̂0 = x - s·v at a random late step (Eq. 1)."""

    def __init__(self, generator: Generator, config: ReFLConfig, seed: int = 0) -> None:
        self.generator, self.config, self.seed = generator, config, seed

    def collect(self, batch: Batch, reward: Reward, step: int) -> Experience:
        """Sample without gradient to a late step, the same for the whole batch, or K - 1 steps before it."""
        if self.config.pretrain and batch.photo is None:
            raise ValueError("pretrain: expected photos beside the low-resolution images, got none; or turn it off")
        draw = seeded(self.seed, "refl", step)
        at = integer(self.config.steps - self.config.late, self.config.steps - 1, draw)
        draws = sample_generators(batch.ids, self.seed, "noise", step)
        begin = at + 1 - self.config.last
        x = sample(self.generator, batch, self.config.steps, draws, stop=begin)
        path = self.generator.steps(self.config.steps).s[begin : at + 1]  # levels of the steps with gradient
        # Of the pre-training term, for each row: it does not depend on the micro-batch or the process it is in.
        seeds = torch.tensor([seed_of(self.seed, "pretrain", step, image) for image in batch.ids.tolist()])
        levels = torch.stack([torch.full((len(x),), s, device=x.device, dtype=x.dtype) for s in path], 1)
        return Experience(batch, {"x": x, "s": levels, "seed": seeds}, reward=reward)

    def loss(self, part: Experience) -> dict[str, Tensor]:
        """The terms of Eq. 2; "loss" is what to minimize.

        A reward that is not finite is a `FloatingPointError`, at the look that is left in `part.looks`.

        Raises:
            ValueError: the reward does not let gradients through.
        """
        config, generator, reward = self.config, self.generator, part.reward
        assert reward is not None  # `collect` has put it there
        x, path = part.tensors["x"], part.tensors["s"].unbind(1)
        condition = generator.condition(part.batch)
        for s, s_next in pairwise(path):
            x = euler(x, s, s_next, generator.velocity(x, s, condition))
        x0 = clean(x, path[-1], generator.velocity(x, path[-1], condition))
        rewards = self._rewards(reward, generator.decode(x0, condition), part.batch)
        if not rewards.requires_grad:
            raise ValueError(
                f"reward: ReFL needs a reward with gradients to the pixels, got scores without from "
                f"{type(reward).__name__}; use grpo, dpo or nft for it"
            )
        part.looks.append(partial(check_finite, rewards.detach(), part.batch.ids))
        weighted = torch.relu(config.target - rewards) if config.weighting == "relu" else -rewards
        terms = {"policy_loss": weighted.mean(), "reward_avg": rewards.detach().mean()}
        loss = config.weight * terms["policy_loss"]
        if config.pretrain:
            draws = [torch.Generator().manual_seed(seed) for seed in part.tensors["seed"].tolist()]
            terms["pretrain_loss"] = flow_matching_loss(generator, part.batch, draws)
            loss = loss + terms["pretrain_loss"]
        return {"loss": loss, **terms}

    def _rewards(self, reward: Reward, images: Tensor, batch: Batch) -> Tensor:
        """Rewards (B,); with `map_weight` their gradient to the pixels is weighted on its way back."""
        weight = self.config.map_weight
        if not weight:
            return score(reward, images, batch).score
        images = images * 1  # its own node: the gradient of nothing else passes here
        output = score(reward, images, batch)
        if not isinstance(output.map, Tensor):
            check_map(reward)
            return output.score
        faults = output.map.detach()
        share = faults / faults.mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(faults.dtype).tiny)
        if images.requires_grad:
            images.register_hook(lambda gradient: gradient * (1 + weight * (share - 1)).to(gradient))
        return output.score
