"""Baselines that the evaluation table sets beside a reward model: maps without learning, and pyiqa's scores.

Each is a `Judge`: images, a list of float (3,H,W) in [0, 1] of one size -> `RewardOutput`.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from finpercep.io.reasons import one_line
from finpercep.models import RewardModel, RewardOutput
from finpercep.rewards.protocol import Reward, call_reward

Judge = Callable[[list[Tensor]], RewardOutput]
"""What is evaluated: answers scores (B,), higher = better, and a map (1,H,W) per image, 1 = degraded, or None.

A judge with an attribute `has_score = False` does not score; its scores are not looked at.
"""

# The strongest of 3, 5, 9, 15 and 31 by AUC against the swap mask.
VARIANCE_WINDOW = 3
CENTER_SIGMA = 0.25


@dataclass(frozen=True)
class MapBaseline:
    """A judge that draws maps and does not score: its scores are NaN.

    Attributes:
        draw: one map (H,W) for each image.
    """

    draw: Callable[[list[Tensor]], list[Tensor]]
    has_score: ClassVar[bool] = False

    def __call__(self, images: list[Tensor]) -> RewardOutput:
        return RewardOutput(torch.full((len(images),), math.nan), [one[None] for one in self.draw(images)])


def random_map(seed: int = 0) -> MapBaseline:
    """Uniform noise, new for every image, from one seed."""
    generator = torch.Generator().manual_seed(seed)
    return MapBaseline(lambda images: [torch.rand(image.shape[-2:], generator=generator) for image in images])


def center_map() -> MapBaseline:
    """A Gaussian in the middle of the image, its standard deviation a quarter of each side."""
    return MapBaseline(
        lambda images: [_gaussian(image.shape[-2])[:, None] * _gaussian(image.shape[-1]) for image in images]
    )


def flatness_map() -> MapBaseline:
    """Minus local variance: 1 - v / max(v), v the variance of the gray image in a window of 3×3 pixels."""
    return MapBaseline(lambda images: [1 - _local_variance(image) for image in images])


def difference_oracle() -> MapBaseline:
    """mean_c |image - photo|: a map that only who has the photo can draw. The photo is the first image of a call."""
    return MapBaseline(lambda images: [(image - images[0]).abs().mean(0) for image in images])


# What is beside every model; `evaluate-reward` has a row for each.
BASELINES: dict[str, Callable[[], Judge]] = {
    "random map": random_map,
    "center map": center_map,
    "minus local variance": flatness_map,
    "|SR - GT| oracle": difference_oracle,
}


def pyiqa_available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("pyiqa") is not None


def pyiqa_metric(name: str, device: str = "cpu") -> Judge:
    """The score of a no-reference metric of pyiqa, its sign turned where lower is better.

    "piqe" has no weights; those of others are taken from where pyiqa keeps them, or downloaded by it.

    Raises:
        RuntimeError: pyiqa is not installed, or cannot make the metric (weights neither there nor to be had).
        ValueError: no metric of that name, or one that needs a reference.
    """
    if not pyiqa_available():
        raise RuntimeError(f"{name}: expected the package pyiqa, got none (pip install 'finpercep[eval]')")
    import pyiqa

    known = pyiqa.list_models("NR")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"metric: expected a no-reference metric of pyiqa, got {name!r}{hint}")
    try:
        metric = pyiqa.create_metric(name, device=torch.device(device))
    except Exception as error:  # the hub, the network, missing packages: many types
        raise RuntimeError(f"{name}: pyiqa cannot make it: {one_line(error, 200)}") from error
    sign = -1.0 if metric.lower_better else 1.0

    def judge(images: list[Tensor]) -> RewardOutput:
        try:
            with torch.inference_mode():
                scores = [sign * float(metric(image[None])) for image in images]
        except Exception as error:  # e.g. images that are too small for it, metrics of whole folders
            raise ValueError(f"expected a score of each image, got {one_line(error, 200)}") from error
        return RewardOutput(torch.tensor(scores, dtype=torch.float64), None)

    return judge


def reward_judge(reward: RewardModel | Reward, *, batch_size: int = 8, device: str = "cpu") -> Judge:
    """A reward as a judge of images of one size: a model by its `score`; any other is called, on its `device`."""
    if isinstance(reward, RewardModel) or not callable(reward):  # `score` of other rewards is something else
        return lambda images: reward.score(torch.stack(images), batch_size=batch_size)

    def judge(images: list[Tensor]) -> RewardOutput:
        with torch.inference_mode():
            batches = torch.stack(images).to(device).split(batch_size)
            outputs = [call_reward(reward, batch, {}) for batch in batches]
        maps = [one.cpu() for output in outputs if output.map is not None for one in output.map]
        return RewardOutput(torch.cat([output.score for output in outputs]).cpu(), maps or None)

    return judge


def _gaussian(side: int) -> Tensor:
    position = (torch.arange(side) + 0.5) / side - 0.5
    return torch.exp(-0.5 * (position / CENTER_SIGMA) ** 2)


def _local_variance(image: Tensor) -> Tensor:
    """(H,W), divided by its maximum; all 0 in a flat image."""
    gray = image.mean(0)[None, None].double()
    pad = VARIANCE_WINDOW // 2

    def box(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, VARIANCE_WINDOW, 1, pad, count_include_pad=False)

    variance = (box(gray * gray) - box(gray) ** 2).clamp_min(0)[0, 0]
    return (variance / variance.max().clamp_min(1e-12)).float()
