"""The climb test: how far the pixels of an SR result can be moved up a reward's score, and what is left of it.

A reward that a generator is trained against is climbed in the same way. What it should do: the score rises little, or
the picture comes nearer to the photo; the result does not pass its photo; and a rise outlives JPEG and a resize.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from finpercep.data import FilterBank, Scene, fault_target, jpeg, resize
from finpercep.models.inputs import as_stored
from finpercep.rewards import Reward

STEPS, RATE = 50, 0.001
"""Adam's steps and learning rate, in units of [0, 1]: at most a quarter of a level in a step."""
QUALITY, FACTOR = 75, 0.7

# key of the summary -> (heading, decimals)
_COLUMNS = {
    "passed": ("passed", 3),
    "median_step": ("step", 1),
    "photo": ("photo", 3),
    "start": ("start", 3),
    "end": ("end", 3),
    "stored": ("8-bit", 3),
    "jpeg75": ("JPEG", 3),
    "resized": ("x 0.7", 3),
    "jpeg_change": ("change", 3),
    "psnr": ("PSNR", 1),
    "psnr_start": ("dB start", 1),
    "psnr_end": ("dB end", 1),
    "severity_start": ("M_gt start", 3),
    "severity_end": ("M_gt end", 3),
}
CLIMB_LEGEND = (
    "passed: share with a step above the photo's score, of results that start at or below it; step: median of these "
    "first steps. photo, start, end: scores; 8-bit, JPEG, x 0.7: scores of the end as a file, and of that file "
    "recompressed at quality 75 or shrunk; change: mean |8-bit - JPEG|. PSNR: of the file against the start. dB, M_gt: "
    "PSNR and mean M_gt against the photo, of the start and of the file at the end."
)


@dataclass(frozen=True)
class Climb:
    """One result of `source` that was moved up the score.

    Attributes:
        photo, start, end: scores of the photo, of the result, and of the climbed float image.
        stored, jpeg75, resized: scores of the climbed image's 8-bit file, and of that file after JPEG at quality 75 and
            after a resize of both sides by 0.7.
        psnr: of the 8-bit file against the start, in dB; infinite where they are equal.
        psnr_start, psnr_end: of the start and of the 8-bit file against the photo, likewise.
        severity_start, severity_end: mean M_gt against the photo, in [0, 1], of the start and of the 8-bit file.
        passed: the first step whose score is above the photo's, 0 for a result that starts there; None: no step.
    """

    scene: str
    source: str
    photo: float
    start: float
    end: float
    stored: float
    jpeg75: float
    resized: float
    psnr: float
    psnr_start: float
    psnr_end: float
    severity_start: float
    severity_end: float
    passed: int | None


def climb(
    reward: Reward, image: Tensor, *, steps: int = STEPS, rate: float = RATE, device: str = "cpu"
) -> tuple[Tensor, list[float]]:
    """Move the pixels of an image up its score by Adam, clamped to [0, 1] after each step.

    Args:
        reward: a differentiable reward that takes only images; a model in evaluation mode.
        image: (3,H,W), float in [0, 1].
        steps, rate: of Adam.
        device: of the reward.

    Returns:
        The climbed image (3,H,W), float32 on the CPU, and `steps + 1` scores: before the first step and after each.

    Raises:
        ValueError: no step, a rate that is not positive, or a reward without a gradient.
    """
    if steps < 1 or not 0 < rate < math.inf:
        raise ValueError(f"climb: expected at least 1 step and a positive rate, got {steps} and {rate}")
    x = image[None].to(device, torch.float32).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=rate, maximize=True)
    scores = []
    for _ in range(steps):
        score = reward(x).score
        if not score.requires_grad:
            raise ValueError("climb: expected a reward with a gradient, got scores without one")
        scores.append(score.item())
        (x.grad,) = torch.autograd.grad(score.sum(), x)
        optimizer.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return x.detach()[0].cpu(), [*scores, _score(reward, x.detach()[0], device)]


def climb_test(
    reward: Reward,
    scene: Scene,
    source: str,
    *,
    bank: FilterBank | None = None,
    steps: int = STEPS,
    rate: float = RATE,
    device: str = "cpu",
) -> Climb:
    """Climb one SR result of a scene and measure what came of it; see `climb` and `Climb`."""
    photo, image = scene.gt.float() / 255, scene.sr(source).float() / 255
    climbed, scores = climb(reward, image, steps=steps, rate=rate, device=device)
    stored = as_stored(climbed)
    small = as_stored(resize(stored, (_part(stored.shape[-2]), _part(stored.shape[-1]))))
    goal = _score(reward, photo, device)
    pair = torch.stack([image, stored])
    severity = fault_target(photo[None], pair, bank or FilterBank(), aligned=scene.aligned).mean((1, 2, 3)).tolist()
    return Climb(
        scene=scene.id,
        source=source,
        photo=goal,
        start=scores[0],
        end=scores[-1],
        stored=_score(reward, stored, device),
        jpeg75=_score(reward, jpeg(stored, QUALITY), device),
        resized=_score(reward, small, device),
        psnr=_psnr(stored, image),
        psnr_start=_psnr(image, photo),
        psnr_end=_psnr(stored, photo),
        severity_start=severity[0],
        severity_end=severity[1],
        passed=next((step for step, score in enumerate(scores) if score > goal), None),
    )


def climb_all(
    reward: Reward,
    scenes: Sequence[Scene],
    per_source: int,
    *,
    steps: int = STEPS,
    rate: float = RATE,
    device: str = "cpu",
    progress: Callable[[], None] | None = None,
) -> list[Climb]:
    """Climb `per_source` results of each SR source; see `picks` for which. `progress` is called after each."""
    climbs, bank = [], FilterBank()
    for scene, source in picks(scenes, per_source):
        climbs.append(climb_test(reward, scene, source, bank=bank, steps=steps, rate=rate, device=device))
        if progress:
            progress()
    return climbs


def picks(scenes: Sequence[Scene], per_source: int) -> list[tuple[Scene, str]]:
    """`per_source` scenes of each source, or all that it has; each source goes on where the one before it ended.

    Raises:
        ValueError: fewer than one per source.
    """
    if per_source < 1:
        raise ValueError(f"climb: expected at least 1 result of each source, got {per_source}")
    chosen, start = [], 0
    for source in dict.fromkeys(source for scene in scenes for source in scene.sources):
        having = [scene for scene in scenes if source in scene.sources]
        count = min(per_source, len(having))
        chosen += [(having[(start + i) % len(having)], source) for i in range(count)]
        start += count
    return chosen


def climb_summary(climbs: Sequence[Climb]) -> dict[str, float | None]:
    """What a climb test comes to.

    Returns:
        climbs: how many; below: how many of them start at or below their photo's score; passed: the share of these that
        pass it; median_step: of the steps at which they do; jpeg_change: mean |score of the 8-bit file - score after
        JPEG 75| of all. The means of `Climb`'s figures, by their names (a PSNR that is infinite is left out). None
        where there is nothing to average.
    """
    below = [one for one in climbs if one.start <= one.photo]
    steps = [one.passed for one in below if one.passed is not None]
    scores, distances = ("photo", "start", "end", "stored", "jpeg75", "resized"), ("psnr", "psnr_start", "psnr_end")
    names = (*scores, *distances, "severity_start", "severity_end")
    return {
        "climbs": len(climbs),
        "below": len(below),
        "passed": len(steps) / len(below) if below else None,
        "median_step": statistics.median(steps) if steps else None,
        "jpeg_change": _mean([abs(one.stored - one.jpeg75) for one in climbs]),
        **{name: _mean([getattr(one, name) for one in climbs]) for name in names},
    }


def climb_figures(climbs: Sequence[Climb]) -> dict[str, Any]:
    """Plain numbers for JSON: the summary, that of each source, and every climb (an infinite PSNR is None)."""
    sources = dict.fromkeys(one.source for one in climbs)
    rows = [asdict(one) for one in climbs]
    return {
        "summary": climb_summary(climbs),
        "sources": {source: climb_summary([one for one in climbs if one.source == source]) for source in sources},
        "results": [{name: None if value == math.inf else value for name, value in row.items()} for row in rows],
    }


def climb_table(climbs: Sequence[Climb]) -> Table:
    """One row per source, then one of all."""
    figures = climb_figures(climbs)
    counts = figures["summary"]
    title = (
        f"climb test: {STEPS} Adam steps of {RATE}; {counts['climbs']} results, {counts['below']} not above their photo"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("source", no_wrap=True)
    for heading, _ in _COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for source, summary in (*figures["sources"].items(), ("all", counts)):
        table.add_row(Text(f"{source} ({summary['climbs']})"), *_cells(summary))
    return table


def _cells(summary: dict[str, Any]) -> list[str]:
    return ["" if summary[key] is None else f"{summary[key]:.{decimals}f}" for key, (_, decimals) in _COLUMNS.items()]


@torch.no_grad()
def _score(reward: Reward, image: Tensor, device: str) -> float:
    return reward(image[None].to(device)).score.item()


def _psnr(image: Tensor, other: Tensor) -> float:
    error = float((image - other).double().square().mean())
    return -10 * math.log10(error) if error else math.inf


def _part(side: int) -> int:
    return max(1, round(FACTOR * side))


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
