"""DiffusionNFT (arXiv 2509.16117): reinforcement on the forward process, without log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finpercep.data.randomness import integer
from finpercep.rewards import Reward
from finpercep.rl.batch import Batch
from finpercep.rl.checks import above_zero, at_least_one, finite, not_negative
from finpercep.rl.coordinates import clean, mix, placed
from finpercep.rl.experience import Experience
from finpercep.rl.generators import Generator
from finpercep.rl.groups import Groups
from finpercep.rl.rollout import portions, sample_images
from finpercep.rl.scores import result_advantages
from finpercep.runs.ema import MovingAverage
from finpercep.runs.ranks import Ranks


@dataclass(frozen=True)
class NFTConfig:
    """Options of DiffusionNFT.

    Attributes:
        steps: of the sampler; training uses its noise levels.
        group_size: results of each image, at least 2.
        across: divide the results of each image, rather than the images, among processes.
        mix: β: how far v⁺ and v⁻ lie on both sides of v_old.
        old_decay: ceiling of η. Results are sampled, and v_old is, by weights that follow the trained ones:
            θ_old ← η·θ_old + (1-η)·θ after the i-th step, η = min(old_rate·i, old_decay). As published it is 0.5; with
            0 they are the trained ones.
        old_rate: by how much η rises with each step, skipped ones too.
        advantage_clip: c: r = ½ + clip(A/c, -1, 1)/2. Smaller values use more of [0, 1].
        map_weight: γ of spatial credit, see `spatial_advantages`: r, L⁺ and L⁻ at each position of the latents. It
            needs a reward with a map. 0 is one r for all positions.
        reference_weight: weight of mean|v - v_ref|².
        keep_dead: groups whose results have equal rewards stay in the mean, with r = ½; `shard` needs it.
        micro_batch: samples in a forward pass of training.
        rollout_batch: results that are sampled, decoded and scored at once, 0 for all of a process's.
    """

    steps: int = 3
    group_size: int = 8
    across: bool = False
    mix: float = 1.0
    old_decay: float = 0.0
    old_rate: float = 0.001
    advantage_clip: float = 5.0
    map_weight: float = 0.0
    reference_weight: float = 0.0
    keep_dead: bool = False
    micro_batch: int = 16
    rollout_batch: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "steps", "micro_batch")
        if self.group_size < 2:
            raise ValueError(
                f"group_size: expected 2 or more, results are compared within a group, got {self.group_size}"
            )
        if not 0 <= self.old_decay < 1:
            raise ValueError(f"old_decay: expected 0 to below 1, got {self.old_decay}")
        above_zero(self, "mix", "old_rate", "advantage_clip")
        finite(self, "mix", "old_rate", "advantage_clip")
        not_negative(self, "map_weight", "reference_weight", "rollout_batch")


class NFT:
    """Good results pull v⁺ = βv + (1-β)v_old, bad ones v⁻ = (1+β)v_old - βv; v_old is the model that sampled them.

    Attributes:
        old: the weights of the old policy, which samples; None where it is what is trained.
    """

    def __init__(self, generator: Generator, config: NFTConfig, seed: int = 0, ranks: Ranks | None = None) -> None:
        self.generator, self.config, self.seed = generator, config, seed
        self.groups = Groups(config.group_size, ranks if config.across else None)
        decay = config.old_decay
        self.old = MovingAverage(generator.trainable_parameters(), decay) if decay else None

    def collect(self, batch: Batch, reward: Reward, step: int) -> Experience:
        """Sample and score groups, noise each result to one of the sampler's levels, and keep v_old there.

        With `old_decay` the old policy does so, after it has followed what the steps before have trained.

        Raises:
            DeadGroups: no group whose rewards differ; those with equal rewards are left out.
            ValueError: spatial credit with a reward without map.
        """
        if self.old is None:
            return self._collect(batch, reward, step)
        self.old.follow(self.config.old_rate * step)
        with self.old.used():
            return self._collect(batch, reward, step)

    def state(self) -> list[Tensor]:
        """The weights of the old policy; none without one."""
        return [] if self.old is None else self.old.averages

    def load_state(self, state: list[Tensor]) -> None:
        """Go on with the weights that `state` gave."""
        if self.old is not None:
            self.old.averages = [kept.to(own) for kept, own in zip(state, self.old.averages, strict=True)]

    @torch.no_grad()
    def _collect(self, batch: Batch, reward: Reward, step: int) -> Experience:
        """What `collect` does, by the weights that the generator has now."""
        config, generator = self.config, self.generator
        results = batch.repeat(self.groups.own)
        draws = self.groups.generators(batch.ids, self.seed, "noise", step)
        x0, images = sample_images(generator, results, config.steps, draws, config.rollout_batch)
        advantages, keep, figures = result_advantages(
            reward,
            images,
            results,
            x0.shape[-2:],
            self.groups,
            clip=config.advantage_clip,
            map_weight=config.map_weight,
            keep_dead=config.keep_dead,
            at_once=config.rollout_batch,
        )
        levels = generator.steps(config.steps).s
        draws = self.groups.generators(batch.ids, self.seed, "nft", step)
        drawn = [levels[integer(0, config.steps - 1, draw)] for draw in draws]
        epsilon = [torch.randn(x0.shape[1:], generator=draw, dtype=torch.float64) for draw in draws]
        s = placed(torch.tensor(drawn, dtype=torch.float64), x0)
        x = mix(x0, placed(torch.stack(epsilon), x0), s)
        share = (0.5 + (advantages / config.advantage_clip) / 2).to(x0.dtype)
        old = [
            generator.velocity(x[part], s[part], generator.condition(results[part]))
            for part in portions(len(x), config.rollout_batch)
        ]
        rows = {"x0": x0, "x": x, "s": s, "old": torch.cat(old), "share": share}
        return Experience(results[keep], {name: row[keep] for name, row in rows.items()}, figures)

    def loss(self, part: Experience) -> dict[str, Tensor]:
        """c/β·mean(r·L⁺ + (1-r)·L⁻), and the distance to the reference."""
        config, rows = self.config, part.tensors
        condition = self.generator.condition(part.batch)
        v, old = self.generator.velocity(rows["x"], rows["s"], condition), rows["old"]
        positive = self._branch(config.mix * v + (1 - config.mix) * old, rows)
        negative = self._branch((1 + config.mix) * old - config.mix * v, rows)
        share = rows["share"]
        policy = (share * positive + (1 - share) * negative).mean() * config.advantage_clip / config.mix
        terms = {"policy_loss": policy.detach(), "old_deviate": (v.detach() - old).square().mean()}
        if not config.reference_weight:
            return {"loss": policy, **terms}
        reference = self.generator.reference_velocity(rows["x"], rows["s"], condition)
        kl = (v - reference).square().mean()
        return {"loss": policy + config.reference_weight * kl, **terms, "kl_loss": kl.detach()}

    def _branch(self, v: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """L (B,), or with spatial credit (B,P): squared error of x̂0 over its own mean absolute error, which has no
        gradient."""
        error = clean(rows["x"], rows["s"], v) - rows["x0"]
        width = error.detach().double().abs().flatten(1).mean(1).clamp(min=1e-5).to(error)
        if self.config.map_weight:
            return error.square().mean(1).flatten(1) / width[:, None]
        return error.square().flatten(1).mean(1) / width
