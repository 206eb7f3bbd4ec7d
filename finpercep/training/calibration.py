"""Calibration of a trained map, so that 0.5 is the border of a fault, kept in the weights.

[open in the paper] Most pixels in training are clean, and a map that is unsure answers low: faults that it points at
with certainty can lie below 0.5. On scenes that were held out, the border is put where the boxes that were replaced
are met best, and the slope where the map follows M_gt best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from finpercep.data import Scene
from finpercep.evaluation.metrics import cc, iou, mean_defined
from finpercep.evaluation.trials import iterate_trials
from finpercep.models import RewardModel
from finpercep.models.evaluation_view import evaluation_view

__all__ = ["MapCalibration", "apply_calibration", "fit_calibration"]

BORDERS = tuple(-8 + 0.25 * step for step in range(49))  # logits, -8 to 4
SLOPES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
_LARGEST = 16.0  # of a logit; beyond, a map in float32 is 0 or 1


@dataclass(frozen=True)
class MapCalibration:
    """logit' = slope · (logit - border), and what it gives on the scenes that it was fitted on.

    Attributes:
        border: the logit that becomes 0.5.
        slope: factor of the logits, above 0.
        iou: mean intersection over union of the map at 0.5 with the replaced boxes.
        cc: mean correlation of the map with M_gt.
        clean: mean of the map on untouched photos.
    """

    border: float
    slope: float
    iou: float
    cc: float
    clean: float


def fit_calibration(model: RewardModel, scenes: Sequence[Scene], *, clean: float = 0.01) -> MapCalibration:
    """Border and slope for a model's map, on held-out scenes; nothing of the model changes.

    The border is the logit whose IoU with the replaced boxes is largest, among those that leave at most `clean` of the
    pixels of untouched photos marked; the slope is the one whose map correlates best with M_gt.

    Args:
        model: with a map; seen as in evaluation mode.
        scenes: with SR results; photos that training has not seen.
        clean: the largest share of untouched pixels above the border, in (0, 1).

    Raises:
        ValueError: a model without a map, or no border that marks so few pixels; and see `iterate_trials`.
    """
    if not model.has_map:
        raise ValueError("model: expected one with a map, got RM_0")
    view = evaluation_view(model)  # in training, every image would move what its normalizations know
    maps: list[tuple[Tensor, Tensor, Tensor]] = []
    photos: list[Tensor] = []
    for trial in iterate_trials(scenes):
        logits = [_logits(view, image) for image in (trial.photo, *trial.implanted)]
        photos.append(logits[0])
        maps += zip(logits[1:], trial.targets, trial.masks, strict=True)
    marked = {border: fmean(float((photo >= border).float().mean()) for photo in photos) for border in BORDERS}
    allowed = [border for border in BORDERS if marked[border] <= clean]
    if not allowed:
        raise ValueError(
            f"clean: expected a share that some border keeps to, got {clean} below {min(marked.values()):.3f}"
        )
    overlap = {b: fmean(iou(logits, mask, b) for logits, _, mask in maps) for b in allowed}
    border = max(allowed, key=lambda b: (overlap[b], b))  # of equal ones the darkest

    def follows(slope: float) -> float:
        scores = [cc(torch.sigmoid(slope * (logits - border)), target) for logits, target, _ in maps]
        return mean_defined(scores) or 0.0

    slope = max(SLOPES, key=follows)
    level = fmean(float(torch.sigmoid(slope * (photo - border)).mean()) for photo in photos)
    return MapCalibration(border, slope, overlap[border], follows(slope), level)


@torch.no_grad()
def apply_calibration(model: RewardModel, calibration: MapCalibration) -> RewardModel:
    """Fold a calibration into the last convolution of the decoder, in place; returns the model.

    Exact: what follows that convolution, an interpolation and the sigmoid, leaves a linear change of logits as it is.
    The score reads the map (Eq. 7), so it changes too.

    Raises:
        ValueError: a model without a map.
    """
    if model.decoder is None:
        raise ValueError("model: expected one with a map, got RM_0")
    final = model.decoder.conv2
    assert final.bias is not None
    final.weight.mul_(calibration.slope)
    final.bias.sub_(calibration.border).mul_(calibration.slope)
    return model


@torch.no_grad()
def _logits(model: RewardModel, image: Tensor) -> Tensor:
    """Logits (H,W) of the map of an image (3,H,W), on the CPU."""
    like = next(model.parameters())
    degradation = model(image[None].to(like.device)).map
    return degradation[0, 0].float().cpu().double().logit().clamp(-_LARGEST, _LARGEST).float()
