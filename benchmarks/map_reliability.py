"""``python -m benchmarks.map_reliability DATA... [--model NAME]``: what a value of the map means.

On the `val` scenes of each folder, photos and photos with implanted faults as `evaluate-reward` makes them: how much of
M lies in each tenth of [0, 1], the mean of M_gt there, and which share of photos scores .8 or more. Writes
`results/map_reliability.json` and `.md`; models that are in it already are measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finpercep.data import Scene, load_scenes
from finpercep.evaluation.trials import iterate_trials
from finpercep.io.files import write_json
from finpercep.models import RewardModel

RESULTS = Path(__file__).parent / "results"
NAME = "map_reliability"
BINS = 10
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
FAULT, GOOD = 0.5, 0.8  # M_gt of what is called a fault, S of what is called a good photo


def tenths(values: Tensor) -> Tensor:
    """Which bin values in [0, 1] fall into; 1 belongs to the last."""
    return (values * BINS).long().clamp(0, BINS - 1)


def reliability(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, list[float | None]]:
    """Share of pixels, and mean M_gt, in each tenth of M; and IoU of M > t with M_gt > .5.

    Args:
        maps, targets: (H,W) in [0, 1], M and M_gt image by image.
    """
    count, sums = torch.zeros(BINS, dtype=torch.float64), torch.zeros(BINS, dtype=torch.float64)
    both, either = (torch.zeros(len(THRESHOLDS), dtype=torch.float64) for _ in range(2))
    for found, target in zip(maps, targets, strict=True):
        bins = tenths(found.flatten())
        count += torch.bincount(bins, minlength=BINS)
        sums.index_add_(0, bins, target.flatten().double())
        for at, threshold in enumerate(THRESHOLDS):
            marked, faulty = found > threshold, target > FAULT
            both[at] += (marked & faulty).sum()
            either[at] += (marked | faulty).sum()
    return {
        "share": (count / count.sum()).tolist(),
        "target": [float(total / n) if n else None for total, n in zip(sums, count, strict=True)],
        "iou": [float(a / b) if b else None for a, b in zip(both, either, strict=True)],
    }


@torch.no_grad()
def measure(model: RewardModel, scenes: Sequence[Scene]) -> dict[str, Any]:
    """`reliability` over photos and their implanted versions, and the share of photos that score .8 or more."""
    maps, targets, scores = [], [], []
    for trial in iterate_trials(scenes):
        output = model.score([trial.photo, *trial.implanted])
        if output.map is None:
            raise ValueError("model: expected one with a map, got a score alone")
        scores.append(float(output.score[0]))
        maps += [one.squeeze(0) for one in output.map]
        targets += [torch.zeros_like(maps[-1]), *trial.targets]
    good = sum(score >= GOOD for score in scores) / len(scores)
    about = {"fingerprint": model.fingerprint, "photos": len(scores)}
    return {**about, "good": good, "lowest": min(scores), **reliability(maps, targets)}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: for each model and folder a row of mean M_gt by tenth of M, and a row of IoU by threshold."""
    tops = [f"{i / BINS:.1f}–{(i + 1) / BINS:.1f}" for i in range(BINS)]
    rows = ["| mean M_gt where M is | | " + " | ".join(tops) + " | photos ≥ .8 |", "|---|---|" + "---:|" * (BINS + 1)]
    thresholds = ["| IoU with M_gt > .5 of | | " + " | ".join(f"M > {t}" for t in THRESHOLDS) + " |"]
    thresholds += ["|---|---|" + "---:|" * len(THRESHOLDS)]
    for model, folders in found.items():
        for folder, values in folders.items():
            cells = ["" if v is None else f"{v:.2f}" for v in values["target"]]
            rows.append(f"| {model} | {folder} | " + " | ".join(cells) + f" | {values['good']:.0%} |")
            cells = ["" if v is None else f"{v:.2f}" for v in values["iou"]]
            thresholds.append(f"| {model} | {folder} | " + " | ".join(cells) + " |")
    return "\n".join([*rows, "", *thresholds]) + "\n"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="folders with index.jsonl")
    parser.add_argument("--model", default="finpercep-small", help="name or folder (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    model = RewardModel.from_pretrained(args.model).eval().requires_grad_(False)
    path = args.results / f"{NAME}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    found[args.model] = {folder.name: measure(model, load_scenes(folder, "val")) for folder in args.data}
    write_json(path, found)
    (args.results / f"{NAME}.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
