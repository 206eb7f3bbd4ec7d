"""Calibration of a trained score, so that untouched photos score high, kept in the weights.

[open in the paper] The losses fix the order of scores and, through L_align or the level, a mean; a photo that the model
is unsure of then scores like a middling result. A rising change of the logit keeps every order. A straight one has two
numbers, which held-out scenes give: nearly all photos above a value that one can remember, and results where they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finpercep.data import Scene
from finpercep.models import RewardModel

__all__ = ["ScoreCalibration", "apply_score_calibration", "fit_score_calibration"]

STEEPEST = 8.0
_BISECTIONS = 60


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

    `share` of the photos score `good` or more, and the mean score of their results stays.

    Args:
        model: in evaluation mode.
        scenes: with SR results; photos that training has not seen, of the kinds that it will be used on.
        good: what an untouched photo should reach, in (0, 1).
        share: how many of them, in (0, 1].

    Raises:
        ValueError: no scene with a result, a value out of its range, or scores that no rising change of their logits
            brings there: too many photos score no higher than results do.
    """
    for name, value, most in (("good", good, 1 - 1e-6), ("share", share, 1.0)):
        if not 0 < value <= most:
            raise ValueError(
                f"{name}: expected a number above 0 and {'at most' if most == 1 else 'below'} 1, got {value}"
            )
    pairs = [(_logit(model, scene.gt), [_logit(model, scene.sr(name)) for name in scene.sources]) for scene in scenes]
    if not any(results for _, results in pairs):
        raise ValueError("scenes: expected scenes with results, got none")
    photos = torch.stack([photo for photo, _ in pairs])
    results = torch.stack([logit for _, own in pairs for logit in own])
    wanted, before = torch.tensor(good, dtype=torch.float64).logit(), results.sigmoid().mean()
    weakest = photos.quantile(1 - share)

    def scores(slope: float, logits: Tensor) -> Tensor:
        return (slope * (logits - weakest) + wanted).sigmoid()

    low, high = 0.0, STEEPEST  # results fall as the slope rises, those below the weakest photo
    if not scores(low, results).mean() > before > scores(high, results).mean():
        raise ValueError(
            f"share: expected photos of which {share:g} score above most results, got {float(weakest.sigmoid()):.3f} "
            f"for the weakest of them and {float(before):.3f} for results on average"
        )
    for _ in range(_BISECTIONS):
        slope = (low + high) / 2
        low, high = (slope, high) if scores(slope, results).mean() > before else (low, slope)
    means = (float(scores(slope, logits).mean()) for logits in (photos, results))
    return ScoreCalibration(slope, float(wanted - slope * weakest), *means)


@torch.no_grad()
def apply_score_calibration(model: RewardModel, calibration: ScoreCalibration) -> RewardModel:
    """Fold a calibration into the last layer of the head, in place; returns the model. Every order of scores stays."""
    final = model.head.mlp[-1]
    assert isinstance(final, nn.Linear)
    final.weight.mul_(calibration.slope)
    final.bias.mul_(calibration.slope).add_(calibration.offset)
    return model


@torch.no_grad()
def _logit(model: RewardModel, image: Tensor) -> Tensor:
    """Logit () of the score of an image, uint8 (3,H,W), on the CPU, in double precision."""
    like = next(model.parameters())
    score = model(image[None].to(like.device).float() / 255).score
    return score[0].cpu().double().clamp(1e-7, 1 - 1e-7).logit()
