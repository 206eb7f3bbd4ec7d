"""Flow-GRPO: Eq. 4 to 6."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from finpercep import ops
from finpercep.ops.sde import KINDS as SDE_KINDS
from finpercep.rewards import Reward
from finpercep.rl.batch import Batch
from finpercep.rl.checks import above_zero, at_least_one, finite, not_negative
from finpercep.rl.experience import Experience
from finpercep.rl.generators import Generator
from finpercep.rl.generators.flow_matching import flow_matching_loss
from finpercep.rl.groups import Groups
from finpercep.rl.rollout import initial_noise, sample_generators
from finpercep.rl.scores import result_advantages
from finpercep.rl.sde_rollout import mean_std, sde_rollout
from finpercep.rl.trust import LIMITS, gap, limited_loss, norm_hinge, spread
from finpercep.rl.window import check_window, window_at
from finpercep.runs.ranks import Ranks

RATIO_TOLERANCE = 1e-5
"""How far from 1 rounding may bring a ratio before the first update."""


@dataclass(frozen=True)
class GRPOConfig:
    """Options of Flow-GRPO.

    flow_grpo's defaults are those of `noise_level`, `kind`, `clip` and `advantage_clip`. It samples 10 steps and 24
    results, with a `beta` of 0.01 to 0.04; ours suit the embedded generator.

    Attributes:
        steps: of the sampler.
        window: first and behind-last step that is random and trained, None for all but the last. The others are
            deterministic, so that no noise is left in the results. A step that falls far, such as the first one of
            `SRTiny`, adds more noise than the steps behind it can remove: leave it out, as `window=(1, 2)` of three
            steps does. A run that does not says so when it starts.
        group_size: results of each image, at least 2.
        across: divide the results of each image, rather than the images, among processes.
        shared_noise: begin all results of an image at the same noise, as DanceGRPO does: they then differ by the
            trained steps alone, and nothing else disturbs their advantages.
        noise_level, kind: of `ops.sde_step`. Log-probabilities of "cps" lack the division by the variance; at little
            noise their gradients are then next to nothing.
        clip: the ratio is limited to [1 - clip, 1 + clip]. Log-probabilities are means over pixels, so it is small.
            Where there is spatial credit, those of positions vary by √positions more, and so much wider is the limit.
        limit: "clip"; "guard": the ratio of GRPO-Guard is clipped instead, at 2e-6 in verl-omni, which `clip` has to
            be set to; "dppo": updates are masked beyond `divergence`, and nothing is clipped. Formulas in `rl.trust`.
        divergence: of "dppo": mean|μ - μ_old|²/(2σ²) from which on.
        sliding: how many steps of `window` are random and trained in a step of training, 0 for all of it.
        slide, slide_every: where they are: "forward" goes on by one every `slide_every` steps of training (MixGRPO),
            "random" is drawn for each; with `window` the first half of the sampler, that is Flow-GRPO-Fast.
        std_weight: multiply advantages by std_t/mean(std_t), of `SDEStep.std`; the mean is over all steps of the
            sampler but the last, whichever of them are trained (TempFlow-GRPO).
        map_weight: γ of spatial credit, see `spatial_advantages`; it needs a reward with a map, or one that gets it
            in a later stage (RM_0). 0 is one advantage for all positions.
        advantage_clip: largest advantage.
        beta: weight of the divergence from the reference.
        norm_weight: weight of `norm_hinge`, against velocities that become longer than the reference's.
        photo_weight: weight of the pre-training term on photos, E|v_θ - (ε - x0)|²: the divergence from the photos'
            distribution, as DDRL adds it (arXiv 2512.04332).
        keep_dead: groups whose results have equal rewards stay in the mean, with advantage 0; `shard` needs it.
        micro_batch: rows, each one step of one sample, in a forward pass of training.
        rollout_batch: results that are sampled, decoded and scored at once, 0 for all of a process's.
    """

    steps: int = 3
    window: tuple[int, int] | None = None
    group_size: int = 8
    across: bool = False
    shared_noise: bool = False
    noise_level: float = 0.7
    kind: str = "flow"
    clip: float = 1e-4
    limit: str = "clip"
    divergence: float = 1e-5
    sliding: int = 0
    slide: str = "forward"
    slide_every: int = 25
    std_weight: bool = False
    map_weight: float = 0.0
    advantage_clip: float = 5.0
    beta: float = 0.0
    norm_weight: float = 0.0
    photo_weight: float = 0.0
    keep_dead: bool = False
    micro_batch: int = 16
    rollout_batch: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "micro_batch")
        above_zero(self, "noise_level", "advantage_clip", "clip")
        if self.kind not in SDE_KINDS:
            raise ValueError(f"kind: expected one of {', '.join(SDE_KINDS)}, got {self.kind!r}")
        finite(self, "noise_level")
        if self.clip > 1:
            raise ValueError(f"clip: expected at most 1, where the lower limit of the ratio is 0, got {self.clip}")
        if self.kind == "cps" and self.noise_level > 1:
            raise ValueError(f"noise_level: expected at most 1 for cps, got {self.noise_level}")
        if self.group_size < 2:
            raise ValueError(
                f"group_size: expected 2 or more, results are compared within a group, got {self.group_size}"
            )
        check_window(self.trained, self.steps, self.sliding, self.slide, self.slide_every)
        if self.limit not in LIMITS:
            raise ValueError(f"limit: expected one of {', '.join(LIMITS)}, got {self.limit!r}")
        if self.limit == "guard" and self.kind == "cps":
            raise ValueError(
                "limit: expected clip or dppo with kind cps, whose log-probability is no density, got guard"
            )
        if self.map_weight and self.limit != "clip":
            raise ValueError(f"map_weight: expected limit clip with spatial credit, got {self.limit}")
        not_negative(self, "map_weight", "norm_weight", "photo_weight", "beta", "divergence", "rollout_batch")

    @property
    def trained(self) -> tuple[int, int]:
        """First and behind-last step of the window."""
        return self.window or (0, self.steps - 1)

    def window_at(self, step: int, seed: int) -> tuple[int, int]:
        """First and behind-last step of the sampler that is trained in a step of training."""
        return window_at(step, self.trained, self.sliding, self.slide, self.slide_every, seed)


class Transition(NamedTuple):
    """What the model says of N steps that were taken."""

    log_prob: Tensor
    """(N,), or (N,P) at positions"""
    mean: Tensor | None
    """μ (N,C,h,w); None where the limit does not need it"""
    sigma: Tensor
    """σ (N,), the standard deviation"""
    kl: Tensor | None
    """(N,), the divergence from the reference's transition; None without reference"""
    velocity: Tensor
    """v (N,C,h,w)"""
    reference: Tensor | None
    """v (N,C,h,w) of the reference, where it was asked"""


class GRPO:
    """Groups of results of one low-quality image by the SDE of Eq. 4, their advantages (Eq. 5), and Eq. 6."""

    def __init__(self, generator: Generator, config: GRPOConfig, seed: int = 0, ranks: Ranks | None = None) -> None:
        self.generator, self.config, self.seed = generator, config, seed
        self.groups = Groups(config.group_size, ranks if config.across else None)

    @torch.no_grad()
    def collect(self, batch: Batch, reward: Reward, step: int) -> Experience:
        """Sample and score the groups. One row is one trained step of one sample; dead groups are left out.

        Old log-probabilities are those of the micro-batches that train: a forward pass in low precision depends on the
        shape of its batch, and then the ratio would not begin at 1.

        Raises:
            DeadGroups: no group whose rewards differ.
            ValueError: spatial credit with a reward without map, or the term on photos without photos.
        """
        config = self.config
        if config.photo_weight and batch.photo is None:
            raise ValueError("photo_weight: expected photos beside the low-resolution images, got none")
        results = batch.repeat(self.groups.own)
        draws = self.groups.generators(batch.ids, self.seed, "noise", step)
        taken, images = sde_rollout(
            self.generator,
            results,
            self._noise(batch, draws, step),  # drawn first: the steps' noise follows it
            draws,
            config.steps,
            config.window_at(step, self.seed),
            noise_level=config.noise_level,
            kind=config.kind,
            at_once=config.rollout_batch,
        )
        advantages, keep, figures = result_advantages(
            reward,
            images,
            results,
            taken["x"].shape[-2:],
            self.groups,
            clip=config.advantage_clip,
            map_weight=config.map_weight,
            keep_dead=config.keep_dead,
            at_once=config.rollout_batch,
        )
        count = taken["x"].shape[1]
        rows = {name: values[keep].flatten(0, 1) for name, values in taken.items()}
        std = rows.pop("std")
        rows["advantage"] = advantages[keep].repeat_interleave(count, 0)
        if config.std_weight:
            usual = mean_std(self.generator.steps(config.steps), noise_level=config.noise_level, kind=config.kind)
            weight = (std / usual).to(rows["advantage"])
            rows["advantage"] = rows["advantage"] * (weight[:, None] if config.map_weight else weight)
        kept = results[keep]
        if config.photo_weight:
            ids = kept.ids[:: self.groups.own]
            rows["seed"] = torch.tensor(self.groups.seeds(ids, self.seed, "photo", step, times=count))
        experience = Experience(kept.repeat(count), rows, figures)
        old = [self._transition(part) for part in experience.parts(config.micro_batch)]
        rows["old_log_prob"] = torch.cat([one.log_prob for one in old])
        if config.limit != "clip":
            rows["old_mean"] = torch.cat([one.mean for one in old if one.mean is not None])
        return replace(experience, tensors=rows)

    def _noise(self, batch: Batch, draws: list[torch.Generator], step: int) -> Tensor:
        """Where the results of a batch begin, (B·own,C,h,w); all of an image at one noise with `shared_noise`."""
        first = self.generator.steps(self.config.steps).s[0]
        x = initial_noise(self.generator, batch.repeat(self.groups.own), draws, first)
        if not self.config.shared_noise:
            return x
        alike = sample_generators(batch.ids, self.seed, "noise", step)  # those of each group's first result
        return initial_noise(self.generator, batch, alike, first).repeat_interleave(self.groups.own, 0)

    def _transition(self, part: Experience, *, reference: bool = False) -> Transition:
        """How likely the steps that were taken are (Eq. 4), and their divergence from the reference's."""
        config, rows = self.config, part.tensors
        condition = self.generator.condition(part.batch)
        given = rows["x"], rows["s"], condition
        v = self.generator.velocity(*given)
        other = self.generator.reference_velocity(*given) if reference else None
        step = ops.sde_step(
            v,
            rows["x"],
            rows["s"],
            rows["s_next"],
            noise_level=config.noise_level,
            next_sample=rows["next"],
            kind=config.kind,
            reference_velocity=other,
            return_mean=config.limit != "clip",
            log_prob="position" if config.map_weight else "sample",
        )
        sigma = spread(config.kind, step.std, rows["s"], rows["s_next"])
        return Transition(step.log_prob, step.mean, sigma, step.kl, v, other)

    def loss(self, part: Experience) -> dict[str, Tensor]:
        """Eq. 6 to minimize, with its statistics under flow_grpo's names.

        Before the first update a ratio that is not 1 is a `RatioError`, at the look that is left in `part.looks`.
        """
        config, rows = self.config, part.tensors
        found = self._transition(part, reference=config.beta > 0 or config.norm_weight > 0)
        positions = found.log_prob.shape[1] if config.map_weight else 1
        clip = min(1.0, config.clip * math.sqrt(positions))
        loss, stats = limited_loss(
            config.limit,
            found.log_prob,
            rows["old_log_prob"],
            rows["advantage"],
            gap(found.mean, rows["old_mean"]) if config.limit != "clip" and found.mean is not None else None,
            found.sigma,
            clip=clip,
            bound=config.divergence,
            kl=found.kl if found.kl is None or not config.map_weight else found.kl[:, None].expand(-1, positions),
            beta=config.beta,
        )
        if part.fresh:
            part.looks.append(partial(_check_ratio, stats.ratio_min, stats.ratio_max, min(RATIO_TOLERANCE, clip)))
        terms = {
            "policy_loss": stats.policy_loss,
            "kl_loss": stats.kl_loss,
            "approx_kl": stats.approx_kl,
            "clipfrac": stats.clip_low + stats.clip_high,
            "clipfrac_gt_one": stats.clip_high,
            "clipfrac_lt_one": stats.clip_low,
            "ratio": stats.ratio_mean,
        }
        for name, weight, term in self._beside(part, found):
            loss, terms[name] = loss + weight * term, term.detach()
        return {"loss": loss, **terms}

    def _beside(self, part: Experience, found: Transition) -> Iterator[tuple[str, float, Tensor]]:
        """Name, weight and value of the terms beside Eq. 6."""
        config = self.config
        if config.norm_weight and found.reference is not None:
            yield "norm_loss", config.norm_weight, norm_hinge(found.velocity, found.reference)
        if config.photo_weight:
            draws = [torch.Generator().manual_seed(seed) for seed in part.tensors["seed"].tolist()]
            yield "photo_loss", config.photo_weight, flow_matching_loss(self.generator, part.batch, draws)


class RatioError(RuntimeError):
    """Sampling and training disagree on how likely a step was, though nothing has been updated in between."""


def _check_ratio(smallest: Tensor, largest: Tensor, tolerance: float) -> None:
    low, high = torch.stack([smallest, largest]).tolist()
    if not 1 - tolerance <= low <= high <= 1 + tolerance:
        raise RatioError(
            f"ratio: expected 1 before the first update, got {low:.8f} to {high:.8f}; the generator answers otherwise "
            "in training than in sampling: look for dropout, normalizations in training mode, another precision, or "
            "weights that were changed in between"
        )
