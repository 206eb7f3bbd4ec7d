"""``python -m benchmarks.rl_rewards DATA...``: reward models in a loop (supplement, section 2.2), at our scale.

The embedded generator climbs each reward by ReFL, with as many steps, at one rate and weight, over seeds: a filter that
anyone can write, the score alone, models with a map, and the one that was trained against its own ascent. Measured on
`val` photos by what no run climbs. Writes `rl_rewards.json` and `.md` after each run; runs that are in it already, of
the same settings and rewards, are not repeated, and one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from benchmarks.reward_runs import cell
from benchmarks.rl_claim import JUDGE, LR, RESULTS, SETTINGS, STEPS, changes, run
from finpercep.io.files import write_json
from finpercep.rewards import load_reward
from finpercep.rl.measures import ST_LPIPS

SHARPNESS = "benchmarks.rl_rewards:sharpness"
REWARDS = {
    SHARPNESS: "mean Laplacian",
    "finpercep-tiny/0": "finpercep-tiny/0, no map",
    "finpercep-tiny": "finpercep-tiny",
    "finpercep-tiny/2": "finpercep-tiny/2",
    "finpercep-small": "finpercep-small",
    "finpercep-small-rl": "finpercep-small-rl",
}
FIGURES = {
    "reward_avg": "its own reward",
    "judge": "judge",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "severity": "severity (less is better)",
    ST_LPIPS: "ST-LPIPS (less is better)",
}
EXPECTED = """Expected beforehand: the filter is exploited at once, the score alone next; rewards with a map lose less
and lower severity; finpercep-small-rl gains most by what it does not see, without an alarm."""
NOTE = """Change from before training to its end on `val` photos, mean ± standard deviation over seeds. The judge is
finpercep-small: of itself, and of what began as it, it is no evidence."""


def sharpness(images: Tensor, prompts: Sequence[str], metadata: Sequence[Any]) -> tuple[Tensor, dict[str, Any]]:
    """Ten times the mean absolute Laplacian, as a reward function of flow_grpo: (B,3,H,W) in [0, 1] -> (B,)."""
    kernel = images.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    edges = conv2d(images.mean(1, keepdim=True), kernel)
    return edges.abs().mean((1, 2, 3)) * 10, {}


def settings_of(reward: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides a run, but for the folder."""
    steps = args.steps or STEPS["refl"]
    metrics = [ST_LPIPS] if importlib.util.find_spec("stlpips_pytorch") is not None else []
    return {
        "data": args.data,
        "algorithm": {"name": "refl"},
        "stages": [{"reward": reward, "steps": steps, "lr": LR["refl"]}],
        "monitors": {"judge": JUDGE, "metrics": metrics},
        "eval_photos": args.photos,
        "eval_every": max(1, steps // 4),
        "save_every": steps,
        "seed": seed,
    }


def key_of(reward: str, settings: dict[str, Any]) -> str:
    """What a result is of: reward and judge by what they are, the data by name."""
    given = {**settings, "data": [Path(folder).name for folder in settings["data"]]}
    prints = [load_reward(name).fingerprint for name in (reward, JUDGE)]
    return json.dumps([prints, given, SETTINGS["refl"]], sort_keys=True)


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: the mean change of each figure ± its standard deviation over seeds."""
    rows = [f"| climbed | seeds | {' | '.join(FIGURES.values())} | alarms |", "|---|" + "---:|" * (len(FIGURES) + 2)]
    for reward, title in REWARDS.items():
        runs = [r for r in found if r["reward"] == reward]
        if not runs:
            continue
        cells = [cell(changes(runs, name), "+.4f") for name in FIGURES]
        alarms = sum(bool(r["alarms"]) for r in runs)
        rows.append(f"| {title} | {len(runs)} | {' | '.join(cells)} | {alarms} |")
    return "\n".join(rows) + "\n"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders with index.jsonl")
    parser.add_argument("--rewards", nargs="+", choices=list(REWARDS), default=list(REWARDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=0, help=f"of each run; default: {STEPS['refl']}")
    parser.add_argument("--photos", type=int, default=32, help="held-out photos")
    parser.add_argument("--runs", type=Path, default=Path("runs/rl_rewards"), help="folder for the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    path = args.results / "rl_rewards.json"
    found: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.is_file() else []
    for seed, reward in [(seed, reward) for seed in args.seeds for reward in args.rewards]:
        settings = settings_of(reward, seed, args)
        key = key_of(reward, settings)
        if any(r["key"] == key for r in found):
            continue
        print(f"{REWARDS[reward]}, seed {seed}", flush=True)
        made = run(SETTINGS["refl"], settings, args.runs / hashlib.sha256(key.encode()).hexdigest()[:12], {})
        found = [r for r in found if (r["reward"], r["seed"]) != (reward, seed)]  # of other settings no more
        found.append({"reward": reward, "seed": seed, "key": key, **made})
        args.results.mkdir(parents=True, exist_ok=True)
        write_json(path, {"runs": found})
        path.with_suffix(".md").write_text(f"{EXPECTED}\n\n{NOTE}\n\n{table(found)}")
    print(table(found))


if __name__ == "__main__":
    main()
