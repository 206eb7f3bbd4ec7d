"""``python -m benchmarks.unseen_sources SR_PAIRS``: super-resolution sources that a model was not trained on.

For each source of the data set, and for none, trains RM_0 and then the full model without it, by the recipe of
finpercep-tiny but shorter, and measures all of them on `--split`, as they are and shifted. Writes
`results/unseen_sources.json` and `.md`; runs are kept in `--runs` and resumed, so it may be stopped at any time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from finpercep.data import Scene, load_scenes
from finpercep.data.scenes import split_dev
from finpercep.data.triplets import TripletConfig
from finpercep.evaluation.baselines import reward_judge
from finpercep.evaluation.evaluate import evaluate
from finpercep.evaluation.trials import SHIFTS
from finpercep.io.files import write_json
from finpercep.models import RewardModel
from finpercep.runs.progress import Screen
from finpercep.training import RewardTrainConfig, train

RESULTS = Path(__file__).parent / "results"
NOTHING = "none"  # the name of the run that leaves nothing out
FIGURES = {"gt_over_sr": "GT>SR", "syn_over_sr": "SR<syn", "gt_over_syn": "syn<GT", "cc": "CC", "auc": "AUC"}
DEV = 5  # with --dev: every fifth training scene is kept out of training and measured


def trained(args: argparse.Namespace, left_out: str) -> RewardModel:
    """The full model of one run, from nothing."""
    common: dict[str, Any] = {
        "data": args.data,
        "leave_out": [] if left_out == NOTHING else [left_out],
        "warmup": 40,
        "lr_encoder": 2e-3,
        "lr_new": 2e-3,
        "triplets": TripletConfig(crop=160),
        "dev_every": DEV if args.dev else 0,
    }
    base = args.runs / f"{left_out}-rm0"
    train(RewardTrainConfig(out=str(base), steps=args.base_steps, **common), [Screen()])
    full = RewardTrainConfig(out=str(args.runs / left_out), anchor=str(base), steps=args.steps, **common)
    return train(full, [Screen()])


def measured_scenes(args: argparse.Namespace) -> list[Scene]:
    return split_dev(load_scenes(args.data, "train"), DEV)[1] if args.dev else load_scenes(args.data, "val")


def figures(model: RewardModel, scenes: list[Scene]) -> dict[str, dict[str, dict[str, float | None]]]:
    """shift -> source -> name of a figure -> its value."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for shift in SHIFTS:
        per_source = evaluate(reward_judge(model), scenes, shift=shift).per_source
        found[shift] = {s: {name: row[name] for name in FIGURES} for s, row in per_source.items()}
    return found


def table(runs: dict[str, Any]) -> list[str]:
    """Markdown: each source by the model that never saw it, and by the one that saw all."""
    heads = [f"{name} {who}" for name in FIGURES.values() for who in ("unseen", "seen")]
    lines = [f"| source, shift | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for shift in SHIFTS:
        for source in (name for name in runs if name != NOTHING):
            unseen, seen = (runs[run][shift][source] for run in (source, NOTHING))
            cells = [f"{values[name]:.3f}" for name in FIGURES for values in (unseen, seen)]
            title = source if shift == "none" else f"{source}, {shift}"
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with index.jsonl")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--base-steps", type=int, default=120, help="updates of RM_0")
    parser.add_argument("--steps", type=int, default=500, help="updates of the full model")
    parser.add_argument("--dev", action="store_true", help="measure on kept-out training scenes, print only")
    args = parser.parse_args()
    scenes = measured_scenes(args)
    runs = {name: figures(trained(args, name), scenes) for name in (NOTHING, *scenes[0].sources)}
    lines = table(runs)
    print("\n".join(lines))
    if not args.dev:
        write_json(
            RESULTS / "unseen_sources.json",
            {"base_steps": args.base_steps, "steps": args.steps, "runs": runs},
        )
        (RESULTS / "unseen_sources.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
