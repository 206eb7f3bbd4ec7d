"""Flow-GRPO: Eq. 4 to 6."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from finpercep import ops
from finpercep.rewards import Reward
from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import euler, placed
from finpercep.rl.experience import Experience
from finpercep.rl.generators import Generator
from finpercep.rl.rollout import initial_noise, sample_generators
from finpercep.rl.scores import alive, group_advantages, group_scores

RATIO_TOLERANCE = 1e-5


@dataclass(frozen=True)
class GRPOConfig:
    """Options of Flow-GRPO; defaults are flow_grpo's where it has them.

    Attributes:
        steps: of the sampler.
        window: first and behind-last step that is random and trained, None for all but the last. The others are
            deterministic, so that no noise is left in the results. A step that falls far, such as the first one of
            `SRTiny`, adds more noise than the steps behind it can remove: leave it out.
        group_size: results of each image, at least 2.
        shared_noise: begin all results of an image at the same noise, as DanceGRPO does: they then differ by the
            trained steps alone, and nothing else disturbs their advantages.
        noise_level, kind: of `ops.sde_step`. Log-probabilities of "cps" lack the division by the variance; at little
            noise their gradients are then next to nothing.
        clip: the ratio is limited to [1 - clip, 1 + clip]. Log-probabilities are means over pixels, so it is small.
        advantage_clip: largest advantage.
        beta: weight of the divergence from the reference.
        micro_batch: rows, each one step of one sample, in a forward pass of training.
    """

    steps: int = 3
    window: tuple[int, int] | None = None
    group_size: int = 8
    shared_noise: bool = False
    noise_level: float = 0.7
    kind: str = "flow"
    clip: float = 1e-4
    advantage_clip: float = 5.0
    beta: float = 0.0
    micro_batch: int = 16

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"group_size: expected 2 or more, results are compared within a group, got {self.group_size}"
            )
        first, end = self.trained
        if not 0 <= first < end <= self.steps - 1:
            raise ValueError(
                f"window: expected steps within 0 to {self.steps - 1}, without the last one, whose noise would stay in "
                f"the image, got {(first, end)}"
            )

    @property
    def trained(self) -> tuple[int, int]:
        """First and behind-last trained step."""
        return self.window or (0, self.steps - 1)


class GRPO:
    """Groups of results of one low-quality image by the SDE of Eq. 4, their advantages (Eq. 5), and Eq. 6."""

    def __init__(self, generator: Generator, config: GRPOConfig, seed: int = 0) -> None:
        self.generator, self.config, self.seed = generator, config, seed

    @torch.no_grad()
    def collect(self, batch: Batch, reward: Reward, step: int) -> Experience:
        """Sample and score the groups. One row is one trained step of one sample; dead groups are left out.

        Old log-probabilities are those of the micro-batches that train: a forward pass in low precision depends on the
        shape of its batch, and then the ratio would not begin at 1.

        Raises:
            DeadGroups: no group whose rewards differ.
        """
        config = self.config
        groups = batch.repeat(config.group_size)
        taken, images = self._rollout(groups, step)
        scores = group_scores(reward, images, groups)
        advantages, figures = group_advantages(reward, scores, groups.ids, config.advantage_clip)
        count = config.trained[1] - config.trained[0]
        keep = alive(advantages, config.group_size)
        rows = {name: torch.stack(values, 1)[keep].flatten(0, 1) for name, values in taken.items()}
        rows["advantage"] = advantages[keep].repeat_interleave(count)
        experience = Experience(groups[keep].repeat(count), rows, figures)
        old = [self._transition(part).log_prob for part in experience.parts(config.micro_batch)]
        return replace(experience, tensors={**rows, "old_log_prob": torch.cat(old)})

    def _rollout(self, batch: Batch, step: int) -> tuple[dict[str, list[Tensor]], Tensor]:
        """For each trained step x (B,C,h,w), what it became, and its levels (B,); and the images."""
        config, generator = self.config, self.generator
        condition, levels = generator.condition(batch), generator.steps(config.steps).s
        draws = sample_generators(batch.ids, self.seed, "noise", step)
        x = initial_noise(generator, batch, draws, levels[0])
        if config.shared_noise:
            x = x[:: config.group_size].repeat_interleave(config.group_size, 0)
        first, end = config.trained
        taken: dict[str, list[Tensor]] = {"x": [], "next": [], "s": [], "s_next": []}
        for at, (s, s_next) in enumerate(pairwise(levels)):
            s_rows, next_rows = (torch.full((len(x),), level, device=x.device, dtype=x.dtype) for level in (s, s_next))
            v = generator.velocity(x, s_rows, condition)
            if not first <= at < end:
                x = euler(x, s, s_next, v)
                continue
            noise = placed(torch.stack([torch.randn(x.shape[1:], generator=draw) for draw in draws]), x)
            after = ops.sde_step(
                v, x, s, s_next, noise_level=config.noise_level, noise=noise, kind=config.kind, return_mean=False
            ).next_sample
            for name, value in zip(taken, (x, after, s_rows, next_rows), strict=True):
                taken[name].append(value)
            x = after
        return taken, generator.decode(x, condition)

    def _transition(self, part: Experience, *, reference: bool = False) -> ops.SDEStep:
        """Log-probability of the taken steps, and their divergence from the reference."""
        config, rows = self.config, part.tensors
        condition = self.generator.condition(part.batch)
        at = (rows["x"], rows["s"], condition)
        return ops.sde_step(
            self.generator.velocity(*at),
            rows["x"],
            rows["s"],
            rows["s_next"],
            noise_level=config.noise_level,
            next_sample=rows["next"],
            kind=config.kind,
            reference_velocity=self.generator.reference_velocity(*at) if reference else None,
            return_mean=False,
        )

    def loss(self, part: Experience) -> dict[str, Tensor]:
        """Eq. 6 to minimize, with its statistics under flow_grpo's names.

        Raises:
            RuntimeError: before the first update a ratio is not 1.
        """
        config = self.config
        transition = self._transition(part, reference=config.beta > 0)
        loss, stats = ops.grpo_loss(
            transition.log_prob,
            part.tensors["old_log_prob"],
            part.tensors["advantage"],
            clip_low=config.clip,
            clip_high=config.clip,
            kl=transition.kl,
            beta=config.beta,
        )
        if part.fresh:
            _check_ratio(stats)
        return {
            "loss": loss,
            "policy_loss": stats.policy_loss,
            "kl_loss": stats.kl_loss,
            "approx_kl": stats.approx_kl,
            "clipfrac": stats.clip_low + stats.clip_high,
            "ratio": stats.ratio_mean,
        }


def _check_ratio(stats: ops.GRPOStats) -> None:
    """Nothing has been updated: sampling and training must agree on how likely each step was."""
    low, high = torch.stack([stats.ratio_min, stats.ratio_max]).tolist()
    if not 1 - RATIO_TOLERANCE <= low <= high <= 1 + RATIO_TOLERANCE:
        raise RuntimeError(
            f"ratio: expected 1 before the first update, got {low:.6f} to {high:.6f}; the generator answers otherwise "
            "in training than in sampling: look for dropout, normalizations in training mode, another precision, or "
            "weights that were changed in between"
        )
