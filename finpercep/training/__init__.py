"""Training the reward model (supplement, section 5.1): settings, losses, trainer, calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

__all__ = [
    "LossWeights",
    "MapCalibration",
    "RewardTrainConfig",
    "RewardTrainer",
    "ScoreCalibration",
    "align_loss",
    "apply_calibration",
    "apply_score_calibration",
    "entropy_loss",
    "fit_calibration",
    "fit_score_calibration",
    "level_loss",
    "map_loss",
    "rank_loss",
    "total_loss",
    "train",
]

if TYPE_CHECKING:
    from finpercep.training.calibration import MapCalibration, apply_calibration, fit_calibration
    from finpercep.training.config import RewardTrainConfig
    from finpercep.training.losses import (
        LossWeights,
        align_loss,
        entropy_loss,
        level_loss,
        map_loss,
        rank_loss,
        total_loss,
    )
    from finpercep.training.score_calibration import (
        ScoreCalibration,
        apply_score_calibration,
        fit_score_calibration,
    )
    from finpercep.training.trainer import RewardTrainer, train

_CALIBRATION = ("MapCalibration", "apply_calibration", "fit_calibration")
_SCORE_CALIBRATION = ("ScoreCalibration", "apply_score_calibration", "fit_score_calibration")
_LOSSES = ("LossWeights", "align_loss", "entropy_loss", "level_loss", "map_loss", "rank_loss", "total_loss")
__getattr__, __dir__ = lazy(
    __name__,
    {
        "RewardTrainConfig": "finpercep.training.config",
        "RewardTrainer": "finpercep.training.trainer",
        "train": "finpercep.training.trainer",
        **dict.fromkeys(_CALIBRATION, "finpercep.training.calibration"),
        **dict.fromkeys(_SCORE_CALIBRATION, "finpercep.training.score_calibration"),
        **dict.fromkeys(_LOSSES, "finpercep.training.losses"),
    },
)
