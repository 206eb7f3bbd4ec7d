"""``python -m benchmarks.rl_learning DATA...``: does each algorithm raise the reward of photos that it does not see?

The embedded generator against the embedded reward model, with and without spatial credit, several seeds, on the CPU.
Every sixth photo of `train` is held out and measured; `val` is not read. Prints and writes `results/rl_learning.json`
and `.md` after each run; runs that are in it already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from finpercep.io.files import write_json
from finpercep.rewards import load_reward
from finpercep.rl.config import StageConfig
from finpercep.rl.loop import train
from finpercep.rl.monitors import MonitorConfig
from finpercep.rl.settings import resolve

RESULTS = Path(__file__).parent / "results"
COMMON = ["dev_every=6", "eval_photos=32", "eval_every=1000", "save_every=1000"]
GRPO = ["stages.0.steps=60", "stages.0.lr=1e-4", "batch=8", "algorithm.window=[1,2]", "algorithm.shared_noise=true"]
NFT = ["stages.0.steps=40", "stages.0.lr=2e-4", "algorithm.advantage_clip=1"]
DPO = ["stages.0.steps=60", "stages.0.lr=1e-4", "algorithm.beta=200"]
MAP = "algorithm.map_weight=1"
REFL = ["stages.0.steps=100", "stages.0.lr=3e-4", "algorithm.weight=0.3"]
PRESETS = {
    "refl": REFL,
    "refl+map": [*REFL, MAP],
    "refl+no reward": [*REFL, "algorithm.weight=0"],
    "dpo": DPO,
    "dpo+map": [*DPO, MAP],
    "grpo": GRPO,
    "grpo+map": [*GRPO, MAP],
    "nft": NFT,
    "nft+map": [*NFT, MAP],
}
"""By algorithm; "+map" is the same with spatial credit, and with the gradient of ReFL weighed by the map; "+no
reward" is its pre-training term on photos alone, which has effects of its own."""
FIGURES = ("reward_avg", "judge", "psnr", "ssim", "severity", "high_frequencies", "jpeg_share", "velocity_distance")


def prints() -> list[str]:
    """Fingerprints of what is climbed and of what judges, by default: a result is of these."""
    return [load_reward(name).fingerprint for name in (StageConfig().reward, MonitorConfig().judge)]


def run(name: str, seed: int, data: list[str], folder: Path) -> dict[str, Any]:
    """One run: figures before and after, and how long it took."""
    started, worked = time.perf_counter(), time.process_time()
    settings = [*COMMON, *PRESETS[name], f"seed={seed}"]
    out = folder / f"{name}-{seed}"
    train(resolve(None, settings, {"data": data, "out": str(out), "algorithm": {"name": name.split("+")[0]}}))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = [{key: line[f"eval/{key}"] for key in FIGURES} for line in lines if "eval/psnr" in line]
    times = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
    figures = {"before": measured[0], "after": measured[-1]}
    return {"seed": seed, "settings": settings, "rewards": prints(), **times, **figures}


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: the mean change of each figure, its standard deviation over seeds, and the gain in those."""
    rows = ["| | seeds | CPU seconds | reward | gain | in sd over seeds | judge | PSNR | severity |"]
    rows += ["|---|" + "---:|" * 8]
    for name, runs in found.items():
        gains = [r["after"]["reward_avg"] - r["before"]["reward_avg"] for r in runs]
        mean, sd = statistics.mean(gains), statistics.stdev(gains) if len(gains) > 1 else math.nan

        def change(key: str, runs: list[dict[str, Any]] = runs) -> float:
            return statistics.mean(r["after"][key] - r["before"][key] for r in runs)

        reward = statistics.mean(r["after"]["reward_avg"] for r in runs)
        worked = [r["cpu_seconds"] for r in runs if "cpu_seconds" in r]
        seconds = f"{statistics.mean(worked):.0f}" if worked else ""
        rows.append(
            f"| {name} | {len(runs)} | {seconds} | {reward:.4f} | {mean:+.4f} ± {sd:.4f} | {mean / sd:.1f} | "
            f"{change('judge'):+.4f} | {change('psnr'):+.3f} | {change('severity'):+.4f} |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders with index.jsonl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--runs", type=Path, default=Path("runs/rl_learning"), help="folder for the runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "rl_learning.json"
    found: dict[str, list[dict[str, Any]]] = json.loads(path.read_text()) if path.is_file() else {}
    rewards = prints()
    for name, runs in list(found.items()):  # of other settings or rewards no more
        present = [r for r in runs if r.get("rewards") == rewards]
        found[name] = [r for r in present if r["settings"] == [*COMMON, *PRESETS[name], f"seed={r['seed']}"]]
        if not found[name]:
            del found[name]
    for seed in args.seeds:  # outside: a table of one seed is whole first
        for name in args.algorithms:
            runs = found.setdefault(name, [])
            settings = [*COMMON, *PRESETS[name], f"seed={seed}"]
            if not any(r["settings"] == settings for r in runs):
                runs.append(run(name, seed, args.data, args.runs))
                found = {name: found[name] for name in PRESETS if name in found}
                write_json(path, found)
                (RESULTS / "rl_learning.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
