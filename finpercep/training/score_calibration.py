"""Calibration of a trained score, so that untouched photos score high, kept in the weights.

[open in the paper] The losses fix the order of scores and, through L_align or the level, a mean; a photo that the model
is unsure of then scores like a middling result. A rising change of the logit keeps every order. A straight one has two
numbers, which held-out scenes give: nearly all photos above a value that one can remember, and results where they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finpercep.data import Scene
from finpercep.models import RewardModel

__all__ = ["ScoreCalibration", "apply_score_calibration", "fit_score_calibration"]

_STEEPEST = 8.0
_STEPS = 800  # of slopes up to it that are looked at, before a bisection between two of them
_BISECTIONS = 50


@dataclass(frozen=True)
class ScoreCalibration:
    """logit' = slope · logit + offset, and what it gives on the scenes that it was fitted on.

    Attributes:
        slope: factor of the logits, above 0.
        offset: added to them.
        photos: mean score of untouched photos.
        results: mean score of super-resolved images, as before.
    """

    slope: float
    offset: float
    photos: float
    results: float


def fit_score_calibration(
    model: RewardModel, scenes: Sequence[Scene], *, good: float = 0.8, share: float = 0.9
) -> ScoreCalibration:
    """Slope and offset for a model's score, on held-out scenes; nothing of the model changes.

    At least `share` of the photos then score `good` or more, the weakest of these exactly `good`, and results score as
    much on average as before. Of the slopes that do this it is the smallest.

    Args:
        model: scored in evaluation mode.
        scenes: with SR results; photos that training has not seen, of the kinds that it will be used on.
        good: what an untouched photo should reach, in (0, 1).
        share: how many of them, in (0, 1].

    Raises:
        ValueError: no scene with a result, a value out of its range or `good` no higher than results score on average,
            or scores that no slope up to 8 brings there: too many photos score no higher than results do.
    """
    if not 0 < good < 1:
        raise ValueError(f"good: expected a number above 0 and below 1, got {good}")
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number above 0 and at most 1, got {share}")
    if not any(scene.sources for scene in scenes):
        raise ValueError("scenes: expected scenes with results, got none")
    photos = _logits(model, [scene.gt for scene in scenes])
    results = _logits(model, [scene.sr(name) for scene in scenes for name in scene.sources])
    before = float(results.sigmoid().mean())
    if not before < good:
        raise ValueError(f"good: expected more than the {before:.3f} that results score on average, got {good}")
    wanted = torch.tensor(good, dtype=torch.float64).logit()
    below = math.floor((1 - share) * len(photos) + 1e-9)  # so many may lie below
    weakest = photos.sort().values[min(below, len(photos) - 1)]

    def scores(slope: float, logits: Tensor) -> Tensor:
        return (slope * (logits - weakest) + wanted).sigmoid()

    low, high = _around(lambda slope: float(scores(slope, results).mean()) - before)
    if high > _STEEPEST:
        raise ValueError(
            f"share: expected photos of which {share:g} score above most results, got {float(weakest.sigmoid()):.3f} "
            f"for the weakest of them and {before:.3f} for results on average"
        )
    for _ in range(_BISECTIONS):
        slope = (low + high) / 2
        low, high = (slope, high) if float(scores(slope, results).mean()) > before else (low, slope)
    return ScoreCalibration(
        high,
        float(wanted - high * weakest),
        photos=float(scores(high, photos).mean()),
        results=float(scores(high, results).mean()),
    )


def _around(excess: Callable[[float], float]) -> tuple[float, float]:
    """The first two neighboring slopes between which `excess`, above 0 at slope 0, comes to 0; else two too steep ones.

    Results above the weakest photo rise with the slope, so that the mean of all need not fall everywhere.
    """
    step = _STEEPEST / _STEPS
    number = next((n for n in range(1, _STEPS + 1) if excess(n * step) <= 0), _STEPS + 1)
    return (number - 1) * step, number * step


@torch.no_grad()
def apply_score_calibration(model: RewardModel, calibration: ScoreCalibration) -> RewardModel:
    """Fold a calibration into the last layer of the head, in place; returns the model. Every order of scores stays.

    One of the map comes first (`apply_calibration`): the score reads the map.
    """
    final = model.head.mlp[-1]
    assert isinstance(final, nn.Linear)
    final.weight.mul_(calibration.slope)
    final.bias.mul_(calibration.slope).add_(calibration.offset)
    return model


def _logits(model: RewardModel, images: Sequence[Tensor]) -> Tensor:
    """Logits (N,) of the scores of images, uint8 (3,H,W), in double precision."""
    scores = torch.cat([model.score([image]).score for image in images])
    return scores.double().clamp(1e-7, 1 - 1e-7).logit()
