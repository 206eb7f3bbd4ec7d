"""Bootstrap intervals of an evaluation: how much its figures would differ on other scenes of the same kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from finpercep.data.scenes import photo_of
from finpercep.evaluation.evaluate import SCORE_METRICS, Evaluation, PairResult
from finpercep.evaluation.metrics import pairwise_probability

INTERVAL_METRICS = (*SCORE_METRICS, "cc", "auc")
Interval = tuple[float, float]
_HEADINGS = ("GT>SR", "SR<syn", "syn<GT", "CC", "AUC")


def bootstrap_intervals(
    results: Sequence[PairResult], *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval | None]:
    """Percentile intervals of the means over pairs of `INTERVAL_METRICS`.

    Scenes are drawn with replacement, each with all its pairs, since pairs of one scene are not independent; crops of
    one photo are one scene. A figure that is equal in all scenes (all pairs in order) has an interval of no width,
    however few scenes there are. Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.

    Args:
        results: of an evaluation, or some of them.
        level: share of the resamples that lie inside.
        resamples: number of resamples.
        seed: of the draws.

    Returns:
        metric -> (low, high); None where fewer than two scenes have the metric.
    """
    return {
        name: _interval(_by_scene(results, name), level, resamples, np.random.default_rng(seed))
        for name in INTERVAL_METRICS
    }


def interval_figures(evaluation: Evaluation) -> dict[str, Any]:
    """Plain numbers for JSON: the 95 % intervals of all sources together, and of each alone."""
    rows = evaluation.results
    return {
        "overall": bootstrap_intervals(rows),
        "sources": {
            source: bootstrap_intervals([row for row in rows if row.source == source]) for source in evaluation.sources
        },
    }


def interval_table(evaluations: Sequence[Evaluation]) -> Table:
    """One row per judge, all sources together."""
    title = f"shift {evaluations[0].shift}: 95 % intervals, scenes resampled 1000 times"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("all sources", no_wrap=True)
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for evaluation in evaluations:
        found = bootstrap_intervals(evaluation.results).values()
        table.add_row(Text(evaluation.name), *("" if one is None else f"{one[0]:.3f}-{one[1]:.3f}" for one in found))
    return table


def _interval(
    values: list[list[float]], level: float, resamples: int, generator: np.random.Generator
) -> Interval | None:
    """Of the mean of all values; each inner list is one scene's."""
    if len(values) < 2:
        return None
    sums, counts = np.array([sum(scene) for scene in values]), np.array([len(scene) for scene in values])
    drawn = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _by_scene(results: Sequence[PairResult], name: str) -> list[list[float]]:
    scenes: dict[str, list[float]] = {}
    for row in results:
        value = _value(row, name)
        if not math.isnan(value):
            scenes.setdefault(photo_of(row.scene), []).append(value)
    return list(scenes.values())


def _value(row: PairResult, name: str) -> float:
    """One pair's part of a mean; NaN where it has none."""
    if name not in SCORE_METRICS:
        return math.nan if row.map is None else row.map[name]
    if row.scores is None:
        return math.nan
    gt, sr, syn = row.scores
    higher, lower = {"gt_over_sr": (gt, sr), "syn_over_sr": (syn, sr), "gt_over_syn": (gt, syn)}[name]
    return pairwise_probability([higher], [lower])
