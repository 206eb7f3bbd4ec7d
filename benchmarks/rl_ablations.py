"""``python -m benchmarks.rl_ablations DATA... --runs DIR``: the reward's losses (Table 1), seen through a generator.

Three reward models of one RM_0 a seed, trained by the ranks alone, with the map, and with L_align besides, as
`reward_ablations` trains them; then the embedded generator climbs each by ReFL, with as many steps. What has learned no
map is climbed by its score alone. Measured on every fifth photo of `train`, which nothing was trained on, by what no
run climbs; `val` is not read. Writes `rl_ablations.json` and `.md` after each run; runs that are in it already are not
repeated, and one that was stopped goes on.

Expected beforehand, from the paper: held-out measures gain most with all losses; the ranks alone are hacked. Its
Table 1 has MUSIQ 71.052, 72.804 and 73.456, and MANIQA 0.628, 0.651 and 0.658.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import reward_ablations
from benchmarks.reward_ablations import DEV, FULL
from benchmarks.reward_runs import Run, cell, collect, parser, tag_of, trained
from finpercep.rewards import load_reward
from finpercep.rl.loop import train
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.settings import resolve

LOSSES = {"rank": "losses rank", "rank, map": "losses rank, map", "rank, map, align": FULL}
"""As the table has it -> the variant of `reward_ablations`."""
REFL = ["stages.0.steps=100", "stages.0.lr=2e-4", "algorithm.weight=5"]
"""A weight at which the reward decides, and not the pre-training term: see docs/rl.md."""
SETTINGS = [f"dev_every={DEV}", "eval_photos=32", "eval_every=1000", "save_every=1000", *REFL]
FIGURES = {"reward_avg": "its own reward", "judge": "judge", "psnr": "PSNR, dB", "ssim": "SSIM", "severity": "severity"}


def climbed(reward: Path, losses: str, seed: int, data: Sequence[str], out: Path) -> Run:
    """Figures of the generator before and after it has climbed a reward."""
    weights = ["stages.0.score_weight=1", "stages.0.map_weight=0"] if losses == "rank" else []
    given = {"data": list(data), "out": str(out), "algorithm": {"name": "refl"}, "stages": [{"reward": str(reward)}]}
    train(resolve(None, [*SETTINGS, *weights, f"seed={seed}"], given))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = [{name: line[f"eval/{name}"] for name in FIGURES} for line in lines if "eval/psnr" in line]
    return {"before": measured[0], "after": measured[-1], "rl": SETTINGS, "judge": judge_print()}


def judge_print() -> str:
    """The fingerprint of what judges by default."""
    return load_reward(MonitorConfig().judge).fingerprint


def is_present(run: Run) -> bool:
    """Whether a result is of the present settings, by the present judge."""
    return run["rl"] == SETTINGS and run.get("judge") == judge_print()


def table(found: dict[str, list[Run]]) -> str:
    """Markdown: mean change and its standard deviation over seeds."""
    lines = [
        f"| losses of the reward | seeds | {' | '.join(FIGURES.values())} |",
        "|---|" + "---:|" * (len(FIGURES) + 1),
    ]
    for losses, runs in found.items():
        cells = [cell([run["after"][name] - run["before"][name] for run in runs], "+.4f") for name in FIGURES]
        lines.append(f"| {losses} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    args = parser(__doc__, "runs/reward_ablations").parse_args(words)

    def run(losses: str, seed: int) -> Run:
        variant = LOSSES[losses]
        changes = reward_ablations.VARIANTS[variant]
        model = trained(args, variant, seed, base=FULL, dev_every=DEV, **changes)
        folder = args.runs / f"rl-{losses.replace(', ', '-')}-{seed}-{tag_of(args, seed)}"
        model.save_pretrained(folder / "reward")
        return climbed(folder / "reward", losses, seed, args.data, folder / "run")

    path = args.results / "rl_ablations.json"
    print(table(collect(path, list(LOSSES), args, run, table, same=is_present)))


if __name__ == "__main__":
    main()
