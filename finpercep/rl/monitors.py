"""What the loop does not climb: measures that tell whether a rising reward means better images, and the alarm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.data.image_ops import jpeg
from finpercep.models import RewardOutput, worst_mean
from finpercep.rl.batch import Batch
from finpercep.rl.checks import at_least_one, not_negative
from finpercep.rl.coordinates import euler
from finpercep.rl.curriculum import paired
from finpercep.rl.generators import Generator
from finpercep.rl.rollout import initial_noise, sample_generators

ALARMS = ("off", "warn", "stop")
BETTER = {"psnr": 1, "ssim": 1, "judge": 1, "severity": -1}
"""Held-out measures that the alarm looks at, and whether more (1) or less (-1) is better."""
LEAST = 0.1
"""Mean size of rewards below which a share of them is not taken."""
_GRAY = (0.299, 0.587, 0.114)
SSIM_SIDE = 11
"""Pixels of the window of `ssim`; images are no smaller."""


@dataclass(frozen=True)
class MonitorConfig:
    """What is measured on held-out photos, and what happens when it parts from the reward.

    Attributes:
        judge: a reward by name that scores the results beside the one that is climbed; left out where it is climbed
            itself. "" is none.
        metrics: further held-out measures by name: "st-lpips", the distance to the photo (extra `stlpips`), or rewards,
            such as "pyiqa:niqe", whose sign is turned where lower is better. The alarm looks at them too. A run that
            goes on may have others.
        alarm: "warn": say so in the log and on the screen, "stop": end the run, "off". A run that it
            ended, started again, goes on to the next measurement, after which the alarm can end it again.
        patience: measurements over which the reward rises and a held-out measure gets worse.
        best: held-out measure, such as "severity": `<out>/best` is then the generator as it was at the measurement that
            was best by it, the one before training among them. "" keeps none.
        climb: held-out results whose pixels are moved up the last stage's reward at the end of the run
            (`evaluation.climb`), for the report; it has to have gradients. 0 is none.

    Raises:
        ValueError: an option out of its range.
    """

    judge: str = "finpercep-small"
    metrics: tuple[str, ...] = ()
    alarm: str = "warn"
    patience: int = 3
    best: str = ""
    climb: int = 0

    def __post_init__(self) -> None:
        if self.alarm not in ALARMS:
            raise ValueError(f"alarm: expected one of {', '.join(ALARMS)}, got {self.alarm!r}")
        at_least_one(self, "patience")
        not_negative(self, "climb")


class Alarm:
    """Looks for a reward that rises while held-out measures get worse.

    The rule: between one measurement and the one `patience` measurements before it, in the same version of the reward,
    the reward has risen and a measure of `BETTER` has become worse, both by more than two standard errors of the paired
    differences, photo by photo.

    Args:
        patience: see there.
        further: measures beside those of `BETTER`, name -> 1 where more is better, -1 where less is.
    """

    def __init__(self, patience: int, further: Mapping[str, int] | None = None) -> None:
        self.patience, self.better = patience, {**BETTER, **(further or {})}
        self.version = ""
        self.measured: list[dict[str, list[float]]] = []

    def note(self, version: str, values: Mapping[str, Tensor]) -> list[str]:
        """Take a measurement: name -> (B,) with "reward_avg" among them; returns an alarm for each measure that parts.

        Args:
            version: of the reward; a new one begins anew.
        """
        if version != self.version:
            self.version, self.measured = version, []
        watched = [name for name in ("reward_avg", *self.better) if name in values]
        self.measured.append({name: values[name].double().tolist() for name in watched})
        del self.measured[: -1 - self.patience]
        if len(self.measured) <= self.patience:
            return []
        first, last = self.measured[0], self.measured[-1]
        reward = paired(first["reward_avg"], last["reward_avg"])
        if not reward.rose:
            return []
        found = []
        for name, sign in self.better.items():
            if name not in first or name not in last:
                continue
            change = paired(first[name], last[name])
            if change.fell if sign > 0 else change.rose:
                found.append(
                    f"over {self.patience} measurements the reward rose by {reward.mean:.4f} ± {reward.error:.4f} and "
                    f"{name} went from {_mean(first[name]):.4f} to {_mean(last[name]):.4f} ± {change.error:.4f}"
                )
        return found

    def forget(self, name: str) -> None:
        """Compare no more with what a measure has given so far."""
        for values in self.measured:
            values.pop(name, None)

    def state(self) -> dict[str, Any]:
        """What `load_state` takes back."""
        return {"version": self.version, "measured": self.measured}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was."""
        self.version, self.measured = state["version"], list(state["measured"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def check_measured(values: Mapping[str, Tensor], step: int, further: Sequence[str] = ()) -> None:
    """Refuse a measurement, name -> (B,), that would pass through means, comparisons and the alarm unseen.

    Args:
        values: the measurement.
        step: at which it was made.
        further: those that a run can go on without.

    Raises:
        FloatingPointError: a figure is not finite; names it and the photo.
    """
    for name, figures in values.items():
        finite = figures.isfinite()
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise FloatingPointError(
                f"{name}: expected a finite figure of each held-out photo, got {figures[row].item()} of number {row} "
                f"at step {step}{'; the run can go on without it in monitors.metrics' if name in further else ''}"
            )


def gray(images: Tensor) -> Tensor:
    """Luma (B,1,H,W) of RGB images (ITU-R BT.601)."""
    return (images * images.new_tensor(_GRAY).view(3, 1, 1)).sum(1, keepdim=True)


def ssim(images: Tensor, photos: Tensor) -> Tensor:
    """Structural similarity (B,) of luma in [0, 1]: Gaussian windows of 11 pixels, σ 1.5 (Wang et al., 2004)."""
    line = torch.exp(-((torch.arange(SSIM_SIDE, device=images.device) - SSIM_SIDE // 2) ** 2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2).to(images)[None, None]

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(values, window)

    x, y = gray(images), gray(photos)
    mx, my = mean(x), mean(y)
    vx, vy, both = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    found = (2 * mx * my + 1e-4) * (2 * both + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))
    return found.flatten(1).mean(1)


def edge_density(images: Tensor, threshold: float = 0.1) -> Tensor:
    """Share (B,) of pixels whose luma changes by more than `threshold` per pixel (Sobel)."""
    across = images.new_tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]]) / 8
    kernel = torch.stack([across, across.T])[:, None]
    slope = F.conv2d(F.pad(gray(images), (1, 1, 1, 1), mode="replicate"), kernel).square().sum(1).sqrt()
    return (slope > threshold).to(images).flatten(1).mean(1)


def high_frequencies(images: Tensor) -> Tensor:
    """Share (B,) of the power of luma, its mean left out, above half of the highest frequency; grids raise it."""
    luma = gray(images)[:, 0]
    power = torch.fft.rfft2(luma - luma.mean((1, 2), keepdim=True)).abs().square()
    height, width = luma.shape[1:]
    vertical = torch.fft.fftfreq(height, device=images.device)[:, None]
    horizontal = torch.fft.rfftfreq(width, device=images.device)
    # All columns but the first, and the last of an even width, stand for two.
    count = torch.full((len(horizontal),), 2.0, device=images.device)
    count[0] = 1
    if width % 2 == 0:
        count[-1] = 1
    high = (vertical.square() + horizontal.square()).sqrt() > 0.25
    total = (power * count).sum((1, 2))
    return (power * count * high).sum((1, 2)) / total.clamp_min(torch.finfo(total.dtype).tiny)


def color_entropy(images: Tensor, levels: int = 8) -> Tensor:
    """Entropy (B,) in bits of the colors, in `levels`³ bins."""
    bins = (images * levels).long().clamp(0, levels - 1)
    codes = (bins[:, 0] * levels + bins[:, 1]) * levels + bins[:, 2]
    found = []
    for code in codes.flatten(1):
        share = torch.bincount(code, minlength=levels**3).double() / code.numel()
        found.append(torch.special.entr(share).sum() / torch.log(share.new_tensor(2.0)))
    return torch.stack(found).to(images.dtype)


def recompressed(images: Tensor, quality: int = 75) -> Tensor:
    """Images (B,3,H,W) in [0, 1] through JPEG."""
    return torch.stack([jpeg(image, quality) for image in images.cpu()]).to(images)


def share_lost(rewards: Tensor, after: Tensor) -> Tensor:
    """What of rewards (B,) is gone `after` (B,), as a share of their mean size: the mean is the share of them all.

    Of a mean size below `LEAST` it is a share of that: near 0 a share would be huge, and say nothing.
    """
    return (rewards - after) / rewards.abs().mean().clamp_min(LEAST)


def score_map_gap(output: RewardOutput) -> Tensor | None:
    """|S - (1 - max̂(M))| (B,), how far a model's score and its map disagree; None without a map."""
    if not isinstance(output.map, Tensor):
        return None
    return (output.score - (1 - worst_mean(output.map))).abs()


@torch.no_grad()
def velocity_figures(generator: Generator, batch: Batch, count: int) -> dict[str, Tensor]:
    """How the velocity differs from the reference's, means over the `count` steps that the sampler takes by v.

    Returns:
        "velocity_distance": |v - v_ref|² / |v_ref|² (B,), and "velocity_norm": |v| / |v_ref| (B,).
    """
    steps, condition = generator.steps(count), generator.condition(batch)
    x = initial_noise(generator, batch, sample_generators(batch.ids, "held out"), steps.s[0])
    distances, norms = [], []
    for s, s_next in pairwise(steps.s):
        level = torch.full((len(x),), s, device=x.device, dtype=x.dtype)
        v, reference = (
            ask(x, level, condition).flatten(1) for ask in (generator.velocity, generator.reference_velocity)
        )
        least = torch.finfo(v.dtype).tiny  # a last layer may begin at 0
        distances.append((v - reference).square().sum(1) / reference.square().sum(1).clamp_min(least))
        norms.append(v.norm(dim=1) / reference.norm(dim=1).clamp_min(least))
        x = euler(x, s, s_next, v.view_as(x))
    return {"velocity_distance": torch.stack(distances).mean(0), "velocity_norm": torch.stack(norms).mean(0)}
