"""``python -m benchmarks.reward_ablations DATA... --runs DIR``: what each part of the training is worth.

Losses, the gate of Eq. 7, alpha and features of M_gt, the decoder's width, the share of climbed images, and each data
set left out: short trainings of the full model from one RM_0 a seed, several seeds. Measured on every fifth scene of
`train`, which is held out (of all data sets, also those left out); `val` is not read. CC is against the usual M_gt,
also where another one was learned. Writes `reward_ablations.json` and `.md` after each run; runs that are in it already
are not repeated, and one that was stopped goes on. One core; a run takes minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.reward_runs import FIGURES, Run, cell, collect, measured, parser, trained
from finpercep.data import Scene, load_scenes, split_dev
from finpercep.training import LossWeights
from finpercep.training.climbing import ClimbConfig

DEV = 5
FULL = "full"
WITHOUT = "without "
VARIANTS: dict[str, dict[str, Any]] = {
    FULL: {},  # all losses, gate "residual", light decoder, nothing climbed
    "losses rank": {"loss": LossWeights(map=0.0, entropy=0.0, align=0.0)},
    "losses rank, map": {"loss": LossWeights(align=0.0)},
    "gate degradation": {"head": {"gate": "degradation"}},
    "gate quality": {"head": {"gate": "quality"}},
    "alpha 0": {"triplets": {"target_alpha": 0.0}},  # features alone; the others have 0.25
    "alpha 1": {"triplets": {"target_alpha": 1.0}},  # pixels alone
    # The scale at which its targets are as strong as the filter bank's, by `target_features`.
    "features alexnet": {"triplets": {"features": "stlpips:alex", "target_scale": 0.33}},
    "decoder full": {"decoder": {"width": "full", "norm": True}},
    "climbed 0.25": {"climb": ClimbConfig(climbed=0.25)},
    "climbed 0.5": {"climb": ClimbConfig(climbed=0.5)},
    "climbed 1": {"climb": ClimbConfig(climbed=1.0)},
}


def variants(data: Sequence[str]) -> list[str]:
    """`VARIANTS`, and one without each data set, where there are several."""
    return [*VARIANTS, *(f"{WITHOUT}{Path(folder).name}" for folder in data if len(data) > 1)]


def held_out(data: Sequence[str]) -> list[Scene]:
    return [scene for folder in data for scene in split_dev(load_scenes(folder, "train"), DEV)[1] if scene.sources]


def table(found: dict[str, list[Run]]) -> str:
    """Markdown: mean and standard deviation over seeds."""
    climbed = {"passed": "climb: passed", "jpeg_change": "climb: change by JPEG"}
    lines = [f"| | seeds | {' | '.join([*FIGURES.values(), *climbed.values()])} |"]
    lines.append("|---|" + "---:|" * (1 + len(FIGURES) + len(climbed)))
    for name, runs in found.items():
        cells = [cell([run["dev"][key] for run in runs]) for key in FIGURES]
        cells += [cell([run["dev"].get("climb", {}).get(key) for run in runs]) for key in climbed]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__, "runs/reward_ablations")
    arguments.add_argument("--variants", nargs="+", metavar="NAME", help="some of those that the table names")
    arguments.add_argument("--climb", type=int, default=1, help="results of each source in the climb test")
    args = arguments.parse_args(words)
    every = variants(args.data)
    names = args.variants or every
    if unknown := sorted({*names} - {*every}):
        arguments.error(f"--variants: expected some of {', '.join(every)}, got {', '.join(unknown)}")
    scenes = held_out(args.data)

    def run(name: str, seed: int) -> Run:
        data = [folder for folder in args.data if name != f"{WITHOUT}{Path(folder).name}"]
        changes = VARIANTS.get(name, {})
        base = FULL if name in VARIANTS else name
        model = trained(args, name, seed, base=base, data=data, dev_every=DEV, **changes)
        return {"dev": measured(model, scenes, climb=args.climb)}

    print(table(collect(args.results / "reward_ablations.json", names, args, run, table)))


if __name__ == "__main__":
    main()
