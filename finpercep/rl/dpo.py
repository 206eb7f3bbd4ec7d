"""Diffusion-DPO: Eq. 3, on pairs that the reward has labelled, or on given ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep import ops
from finpercep.data.randomness import seeded, uniform
from finpercep.ops.advantage import default_resolution
from finpercep.rewards import Reward
from finpercep.rl.batch import Batch
from finpercep.rl.checks import above_zero, at_least_one, finite, not_negative
from finpercep.rl.coordinates import error_weight, mix, placed
from finpercep.rl.experience import DeadGroups, Experience
from finpercep.rl.generators import Generator
from finpercep.rl.generators.flow_matching import draw_level
from finpercep.rl.rollout import sample_generators, sample_images
from finpercep.rl.scores import credit_map, ranked_by, scores_and_map
from finpercep.rl.spatial import spatial_advantages

ERRORS = ("auto", "velocity", "epsilon")
LEVELS = ("auto", "uniform", "sampler")
PAIRS = ("reward", "given")


@dataclass(frozen=True)
class DPOConfig:
    """Options of Diffusion-DPO.

    Attributes:
        steps: of the sampler.
        group_size: results of each image, at least 2: the best and the worst become a pair.
        beta: β of Eq. 3.
        map_weight: γ of spatial credit, see `spatial_advantages`: the pair is put together position by position of the
            latents, of the result that is the best of the group there, and of the worst one. It needs a reward with a
            map. 0 is the best and the worst result.
        pairs: "reward": the generator samples, and the reward labels; "given": results that were labelled beforehand,
            which `pairs.jsonl` names beside each low-resolution image, as DP2O-SR trains. Rewards then measure alone.
        error: what δ measures: "velocity" for flow models, "epsilon" as the paper writes it; |ε̂ - ε| = (1-s)·|v̂ - v|.
            "auto": what the model itself predicts, see `error_weight`: ε, x0 or α·ε - σ·x0 as a UNet's scheduler says,
            else v.
        levels: how s is drawn: "uniform" up to the sampler's first, or distributed as the "sampler"'s are. "auto": the
            latter for UNets, whose timesteps it then draws evenly, as Diffusion-DPO does; else uniform.
        micro_batch: pairs in a forward pass of training.
        rollout_batch: results that are sampled, decoded and scored at once, 0 for all of a process's.
    """

    steps: int = 3
    group_size: int = 8
    beta: float = 2000.0
    map_weight: float = 0.0
    pairs: str = "reward"
    error: str = "auto"
    levels: str = "auto"
    micro_batch: int = 8
    rollout_batch: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "steps", "micro_batch")
        if self.group_size < 2:
            raise ValueError(f"group_size: expected 2 or more, two results make a pair, got {self.group_size}")
        above_zero(self, "beta")
        finite(self, "beta")
        not_negative(self, "map_weight", "rollout_batch")
        if self.map_weight and self.pairs == "given":
            raise ValueError("map_weight: expected pairs reward with spatial credit, got given ones")
        for name, values in (("error", ERRORS), ("levels", LEVELS), ("pairs", PAIRS)):
            if getattr(self, name) not in values:
                raise ValueError(f"{name}: expected one of {', '.join(values)}, got {getattr(self, name)!r}")


class DPO:
    """-log σ(-β/2·(δ(x^w) - δ(x^l))), δ the squared error less that of the reference; same noise, same level."""

    def __init__(self, generator: Generator, config: DPOConfig, seed: int = 0) -> None:
        self.generator, self.config, self.seed = generator, config, seed
        kind = getattr(generator, "kind", "")  # what a UNet predicts, of diffusers
        self.error = (kind or "velocity") if config.error == "auto" else config.error
        self.levels = config.levels if config.levels != "auto" else "sampler" if kind else "uniform"

    @torch.no_grad()
    def collect(self, batch: Batch, reward: Reward, step: int) -> Experience:
        """Sample groups, and make a pair of the best and the worst of each; ties are dropped.

        Raises:
            DeadGroups: all rewards are tied.
            ValueError: spatial credit with a reward without map.
        """
        config, generator = self.config, self.generator
        if config.pairs == "given":
            return self._given(batch, step)
        groups = batch.repeat(config.group_size)
        draws = sample_generators(groups.ids, self.seed, "noise", step)
        x0, images = sample_images(generator, groups, config.steps, draws, config.rollout_batch)
        scores, faults = scores_and_map(reward, images, groups, config.rollout_batch)
        by_image = ranked_by(reward, scores, groups.ids).view(len(batch), config.group_size)
        high, low = by_image.amax(1), by_image.amin(1)
        gap = high - low
        # As in Eq. 5: what rounding may have made is no preference.
        resolution = default_resolution(by_image.dtype) * torch.maximum(high.abs(), low.abs())
        rows = torch.nonzero(gap > resolution).flatten()
        figures = {"reward_avg": scores["avg"].mean(), "reward_gap": gap.mean()}
        figures["zero_std_ratio"] = (gap <= resolution).float().mean()
        if not len(rows):
            raise DeadGroups(
                f"reward: all {len(batch)} images have equal rewards for all their results, so that there is no pair; "
                "raise group_size, or use a reward that is not saturated on these images",
                figures,
            )
        samples, pairs = x0.unflatten(0, by_image.shape), batch[rows]
        credit = by_image[..., None]
        if config.map_weight:
            credit = self._credit(by_image, credit_map(faults, reward, scores), x0.shape[-2:])
        best, worst = credit.argmax(1)[rows], credit.argmin(1)[rows]
        tensors = {"win": _put_together(samples[rows], best), "lose": _put_together(samples[rows], worst)}
        return Experience(pairs, {**tensors, **self._noise(pairs, x0, step)}, figures)

    def _credit(self, by_image: Tensor, faults: Tensor, grid: torch.Size) -> Tensor:
        """How good each result (B,g) is at each position of the latents, (B,g,P)."""
        size, (height, width) = self.config.group_size, grid
        advantages, _ = ops.group_advantage(by_image.flatten(), group_size=size)
        spatial = spatial_advantages(advantages, faults, size, (height, width), self.config.map_weight)
        return spatial.unflatten(0, by_image.shape)

    def _given(self, batch: Batch, step: int) -> Experience:
        """The pairs that the batch brings."""
        if missing := {"chosen", "rejected"} - batch.extras.keys():
            raise ValueError(
                f"pairs: expected {' and '.join(sorted(missing))} beside every low-resolution image, got none"
            )
        condition = self.generator.condition(batch)
        win, lose = (self.generator.encode(batch.extras[name], condition) for name in ("chosen", "rejected"))
        return Experience(batch, {"win": win, "lose": lose, **self._noise(batch, win, step)})

    def _noise(self, batch: Batch, like: Tensor, step: int) -> dict[str, Tensor]:
        """A level s (B,) and ε (B,C,h,w) for each pair: a function of its image and of the step."""
        draws = [seeded(self.seed, "dpo", step, image) for image in batch.ids.tolist()]
        if self.levels == "sampler":
            s = torch.cat([draw_level(self.generator, draw) for draw in draws])
        else:
            top = self.generator.steps(self.config.steps).s[0]  # no model is asked about more noise than it knows
            s = torch.tensor([uniform(0, top, draw) for draw in draws], dtype=torch.float64)
        epsilon = [torch.randn(like.shape[1:], generator=draw, dtype=torch.float64) for draw in draws]
        return {"s": placed(s, like), "epsilon": placed(torch.stack(epsilon), like)}

    def loss(self, part: Experience) -> dict[str, Tensor]:
        """Eq. 3 to minimize: the log-sigmoid of each pair, then their mean; and how often the pair is ordered right."""
        rows = part.tensors
        condition = self.generator.condition(part.batch)
        difference = self._delta(rows["win"], rows, condition) - self._delta(rows["lose"], rows, condition)
        inside = -self.config.beta / 2 * difference
        return {
            "loss": -F.logsigmoid(inside).mean(),
            "implicit_acc": (inside > 0).to(inside.dtype).mean().detach(),
        }

    def _delta(self, x0: Tensor, rows: dict[str, Tensor], condition: object) -> Tensor:
        """δ (B,): the model's squared error less the reference's."""
        s, target = rows["s"], rows["epsilon"] - x0
        x = mix(x0, rows["epsilon"], s)
        weight = error_weight(self.error, s, x)

        def error(v: Tensor) -> Tensor:
            squared = (v - target).square()
            return (squared if weight is None else weight * squared).flatten(1).mean(1)

        model = error(self.generator.velocity(x, s, condition))
        return model - error(self.generator.reference_velocity(x, s, condition))


def _put_together(samples: Tensor, chosen: Tensor) -> Tensor:
    """Latents (B,C,h,w) that have at each position those of the result, of samples (B,g,C,h,w), that `chosen` (B,P)
    numbers; (B,1) is one for all positions."""
    flat = samples.flatten(3)
    index = chosen[:, None, None].expand(-1, 1, *flat.shape[2:])
    return flat.gather(1, index)[:, 0].unflatten(2, samples.shape[3:])
