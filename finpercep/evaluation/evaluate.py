"""The evaluation of a reward model: does the score order what it must, and does the map lie where the fault is?

Per scene and SR source: S_GT of the photo, S_SR of the super-resolved version, S_syn of the photo with 1–3 boxes of
it; the map of the latter is compared with M_gt and with the swap mask. `evaluate` measures one judge;
`finpercep evaluate-reward` prints the tables of `finpercep.evaluation.report`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from finpercep.data import Scene
from finpercep.evaluation.baselines import Judge
from finpercep.evaluation.metrics import MAP_METRICS, map_metrics, mean_defined, pairwise_probability
from finpercep.evaluation.trials import Trial, iterate_trials

SCORE_METRICS = ("gt_over_sr", "syn_over_sr", "gt_over_syn")
"""P(S_GT > S_SR), P(S_SR < S_syn), P(S_syn < S_GT): within a scene, ties half."""


@dataclass(frozen=True)
class PairResult:
    """What was measured on one scene and source; None where the judge gives no score or no map."""

    scene: str
    source: str
    scores: tuple[float, float, float] | None  # S_GT, S_SR, S_syn
    map: dict[str, float] | None  # MAP_METRICS of the implanted photo's map
    clean: float | None  # mean of the photo's own map


@dataclass(frozen=True)
class Evaluation:
    """One judge under one shift. `summary` averages over pairs; metrics that do not exist are None."""

    name: str
    shift: str
    seed: int
    faults: tuple[int, int]
    results: list[PairResult] = field(repr=False)

    @property
    def sources(self) -> list[str]:
        return list(dict.fromkeys(result.source for result in self.results))

    @property
    def overall(self) -> dict[str, float | None]:
        return self.summary()

    @property
    def per_source(self) -> dict[str, dict[str, float | None]]:
        return {source: self.summary(only=[source]) for source in self.sources}

    def summary(self, *, only: Sequence[str] | None = None, without: Sequence[str] = ()) -> dict[str, float | None]:
        """Counts (pairs, scenes, maps), SCORE_METRICS, MAP_METRICS and clean_mean of some sources.

        `maps` counts the pairs whose map metrics exist; clean_mean is averaged over scenes, not pairs.

        Raises:
            ValueError: a source that was not evaluated.
        """
        unknown = {*(only or ()), *without} - set(self.sources)
        if unknown:
            raise ValueError(f"source: expected some of {self.sources}, got {sorted(unknown)}")
        rows = [r for r in self.results if (only is None or r.source in only) and r.source not in without]
        maps = [row.map for row in rows if row.map is not None]
        clean = {row.scene: row.clean for row in rows if row.clean is not None}
        return {
            "pairs": len(rows),
            "scenes": len({row.scene for row in rows}),
            "maps": sum(values["cc"] == values["cc"] for values in maps),
            **_score_summary([row.scores for row in rows if row.scores is not None]),
            **{name: mean_defined([values[name] for values in maps]) for name in MAP_METRICS},
            "clean_mean": mean_defined(list(clean.values())),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: name, shift, seed, faults, overall and sources."""
        head = {"name": self.name, "shift": self.shift, "seed": self.seed, "faults": list(self.faults)}
        return {**head, "overall": self.overall, "sources": self.per_source}


def evaluate(
    judge: Judge,
    scenes: Sequence[Scene],
    *,
    name: str = "",
    seed: int = 0,
    faults: tuple[int, int] = (1, 3),
    shift: str = "none",
) -> Evaluation:
    """Measure one judge on every scene × source; see `evaluate_all`."""
    return evaluate_all({name: judge}, scenes, seed=seed, faults=faults, shift=shift)[0]


def evaluate_all(
    judges: Mapping[str, Judge],
    scenes: Sequence[Scene],
    *,
    seed: int = 0,
    faults: tuple[int, int] = (1, 3),
    shift: str = "none",
    progress: Callable[[], None] | None = None,
) -> list[Evaluation]:
    """Measure several judges on the same trials: one evaluation each, in order.

    Args:
        judges: name -> judge. A judge is called once per scene with its images, a list of float (3,H,W) in [0, 1]
            of one size: the photo, then the SR results, then the implanted photos. It answers `RewardOutput`: scores
            (B,), higher = better, and a map (H,W) or (1,H,W), 1 = degraded, per image, or None. Scores of a judge
            with `has_score = False` are not looked at. `baselines.reward_judge` makes one of a reward model.
        seed, faults, shift: see `finpercep.evaluation.trials.iterate_trials`.
        progress: called after each scene.

    Raises:
        ValueError: bad arguments, or a judge that returns another number of scores or maps than it got images,
            a value that is not finite, or a map of another size; the message names the judge.
    """
    results: dict[str, list[PairResult]] = {name: [] for name in judges}
    for trial in iterate_trials(scenes, seed=seed, faults=faults, shift=shift):
        for name, judge in judges.items():
            try:
                results[name].extend(_measure(judge, trial))
            except ValueError as error:
                raise ValueError(f"{name or 'judge'}: scene {trial.scene}: {error}") from error
        if progress:
            progress()
    return [Evaluation(name, shift, seed, faults, rows) for name, rows in results.items()]


@torch.no_grad()
def _measure(judge: Judge, trial: Trial) -> list[PairResult]:
    count = len(trial.sources)
    images = [trial.photo, *trial.restored, *trial.implanted]
    output = judge(images)
    scores, maps = output.score if getattr(judge, "has_score", True) else None, output.map
    for kind, values in (("scores", scores), ("maps", maps)):
        if values is not None and len(values) != len(images):
            raise ValueError(f"expected {len(images)} {kind}, one per image, got {len(values)}")
    if maps is not None:
        _check_maps(maps, trial.photo)
    clean = None if maps is None else _mean(maps[0])
    rows: list[PairResult] = []
    for i, source in enumerate(trial.sources):
        triple: tuple[float, float, float] | None = None
        measured: dict[str, float] | None = None
        if scores is not None:
            triple = (float(scores[0]), float(scores[1 + i]), float(scores[1 + count + i]))
            if not all(map(math.isfinite, triple)):
                raise ValueError(f"expected finite scores, got {triple}")
        if maps is not None:
            measured = map_metrics(maps[1 + count + i], trial.targets[i], trial.masks[i])
        rows.append(PairResult(trial.scene, source, triple, measured, clean))
    return rows


def _check_maps(maps: Tensor | Sequence[Tensor], photo: Tensor) -> None:
    for one in maps:
        found = torch.as_tensor(one)
        if found.shape[-2:] != photo.shape[-2:] or found.numel() != photo[0].numel():
            sides = tuple(photo.shape[-2:])
            raise ValueError(f"prediction: expected {sides} like the target, got {tuple(found.shape)}")
        if not bool(found.isfinite().all()):
            raise ValueError("prediction: expected finite values, got NaN or infinity")


def _mean(values: Tensor) -> float:
    return float(torch.as_tensor(values).double().mean())


def _score_summary(scores: list[tuple[float, float, float]]) -> dict[str, float | None]:
    if not scores:
        return dict.fromkeys(SCORE_METRICS)
    gt, sr, syn = zip(*scores, strict=True)
    values = (pairwise_probability(gt, sr), pairwise_probability(syn, sr), pairwise_probability(gt, syn))
    return dict(zip(SCORE_METRICS, values, strict=True))
