"""Evaluation while training, on the scenes that are held out, and the best model by it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from finpercep.data.scenes import Scene, spread
from finpercep.evaluation.baselines import reward_judge
from finpercep.evaluation.evaluate import SCORE_METRICS, evaluate
from finpercep.models import RewardModel
from finpercep.training.config import RewardTrainConfig

DEV_FIGURES = (*SCORE_METRICS, "cc", "auc", "clean_mean")
"""What is measured: the three orders, the map against M_gt and against the mask, and the mean map of photos."""
PREFIX = "dev/"


class DevEvaluation:
    """A selection of the held-out scenes and the best that was measured on them.

    Args:
        config: of the run.
        scenes: those that are held out.

    Attributes:
        best: the best `quality` so far.

    Raises:
        ValueError: evaluation without scenes that could be measured.
    """

    def __init__(self, config: RewardTrainConfig, scenes: Sequence[Scene]) -> None:
        usable = [scene for scene in scenes if scene.sources]
        if config.evaluate_every and not usable:
            got = f"dev_every={config.dev_every}"
            raise ValueError(f"evaluate_every: expected held-out scenes with results (--dev-every), got {got}")
        self.scenes = spread(usable, config.evaluate_scenes)
        self.best = -math.inf

    def figures(self, model: RewardModel) -> dict[str, float]:
        """`DEV_FIGURES` of a model, as far as it has them, each as "dev/NAME"."""
        overall = evaluate(reward_judge(model), self.scenes).overall
        return {PREFIX + name: value for name in DEV_FIGURES if (value := overall[name]) is not None}

    def improved(self, figures: dict[str, float]) -> bool:
        """Whether these figures are the best so far, which they then are."""
        found = quality(figures)
        better, self.best = found > self.best, max(found, self.best)
        return better


def quality(figures: dict[str, float]) -> float:
    """Mean of the figures of which more is better: orders and, of a model with a map, CC and AUC."""
    return statistics.mean(value for name, value in figures.items() if name != f"{PREFIX}clean_mean")
