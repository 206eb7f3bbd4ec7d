"""Evaluation of rewards on implanted faults: trials, metrics of maps and scores, baselines, tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

__all__ = [
    "MAP_METRICS",
    "SCORE_METRICS",
    "Evaluation",
    "Judge",
    "evaluate_all",
    "iterate_trials",
    "map_metrics",
    "plcc",
    "pyiqa_metric",
    "reward_judge",
    "run",
    "srcc",
]

if TYPE_CHECKING:
    from finpercep.evaluation.baselines import Judge, pyiqa_metric, reward_judge
    from finpercep.evaluation.evaluate import SCORE_METRICS, Evaluation, evaluate_all
    from finpercep.evaluation.metrics import MAP_METRICS, map_metrics, plcc, srcc
    from finpercep.evaluation.report import run
    from finpercep.evaluation.trials import iterate_trials

__getattr__, __dir__ = lazy(
    __name__,
    {
        **dict.fromkeys(("Judge", "pyiqa_metric", "reward_judge"), "finpercep.evaluation.baselines"),
        **dict.fromkeys(("SCORE_METRICS", "Evaluation", "evaluate_all"), "finpercep.evaluation.evaluate"),
        **dict.fromkeys(("MAP_METRICS", "map_metrics", "plcc", "srcc"), "finpercep.evaluation.metrics"),
        "iterate_trials": "finpercep.evaluation.trials",
        "run": "finpercep.evaluation.report",
    },
)
