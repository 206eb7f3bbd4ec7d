"""``python -m benchmarks.rl_rewards DATA...``: reward models in a loop (supplement, section 2.2), at our scale.

The embedded generator climbs each reward by ReFL, with as many steps, at one rate, over seeds: a filter that anyone can
write, the score alone, models with a map, and the one that was trained against its own ascent. One weight λ pushes a
generator far by one of them and hardly by another; so each is climbed with several. Measured on `val` photos by what no
run climbs. Writes `rl_rewards.json` and `.md` and the figure of docs/rl.md after each run; runs that are in it already,
of the same settings and rewards, are not repeated, and one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import statistics
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from benchmarks.reward_runs import cell
from benchmarks.rl_claim import JUDGE, LR, RESULTS, STEPS, changes, run, steps_of
from finpercep.io.files import write_json
from finpercep.rewards import load_reward
from finpercep.rl.measures import ST_LPIPS

FIGURE = RESULTS.parents[1] / "docs" / "rl_rewards.png"
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
WEIGHTS = (1.0, 5.0, 25.0)
LIMIT = 0.05
"""dB of PSNR that the second table lets a generator lose."""
EXPECTED = """Expected, after one seed of each on held-out training photos: at a high enough weight every reward is
exploited, the filter and the models with a map alike; finpercep-tiny does at λ = 25 what finpercep-tiny/2 does at 5.
Within 0.05 dB severity falls by 0.02 with finpercep-tiny and by 0.01 with finpercep-small and finpercep-small-rl, and
with the score alone it does not."""
NOTE = """Change from before training to its end on `val` photos, mean ± standard deviation over seeds; λ is the weight
of the reward beside the pre-training term. The judge is finpercep-small: of itself, and of what began as it, it is no
evidence."""
WITHIN = f"""The most that severity fell, over all weights and measurements, where PSNR was not below -{LIMIT} dB (means
over seeds), and where that was:"""


def sharpness(images: Tensor, prompts: Sequence[str], metadata: Sequence[Any]) -> tuple[Tensor, dict[str, Any]]:
    """Ten times the mean absolute Laplacian, as a reward function of flow_grpo: (B,3,H,W) in [0, 1] -> (B,)."""
    kernel = images.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    edges = conv2d(images.mean(1, keepdim=True), kernel)
    return edges.abs().mean((1, 2, 3)) * 10, {}


def settings_of(reward: str, weight: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides a run, but for the folder."""
    steps = args.steps or STEPS["refl"]
    metrics = [ST_LPIPS] if importlib.util.find_spec("stlpips_pytorch") is not None else []
    return {
        "data": args.data,
        "algorithm": {"name": "refl", "weight": weight},
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
    return json.dumps([prints, given], sort_keys=True)


def grouped(found: list[dict[str, Any]]) -> Iterator[tuple[str, float, list[dict[str, Any]]]]:
    """Runs by reward and weight, in the order of the tables."""
    for reward in REWARDS:
        for weight in sorted({r["weight"] for r in found}):
            if runs := [r for r in found if (r["reward"], r["weight"]) == (reward, weight)]:
                yield reward, weight, runs


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: the mean change of each figure ± its standard deviation over seeds."""
    rows = [f"| climbed | λ | seeds | {' | '.join(FIGURES.values())} | alarms |"]
    rows.append("|---|" + "---:|" * (len(FIGURES) + 3))
    for reward, weight, runs in grouped(found):
        cells = [cell(changes(runs, name), "+.4f") for name in FIGURES]
        alarms = sum(bool(r["alarms"]) for r in runs)
        rows.append(f"| {REWARDS[reward]} | {weight:g} | {len(runs)} | {' | '.join(cells)} | {alarms} |")
    return "\n".join(rows) + "\n"


def curve(runs: list[dict[str, Any]], name: str) -> list[float]:
    """The mean change of a figure since the first measurement, at each of them."""
    steps = steps_of(runs[0])
    return [statistics.mean(r["curve"][step][name] - r["curve"][steps[0]][name] for r in runs) for step in steps]


def within(found: list[dict[str, Any]]) -> str:
    """Markdown: of each reward the measurement of least severity among those that cost at most `LIMIT` dB."""
    best: dict[str, tuple[float, float, float, str]] = {}
    for reward, weight, runs in grouped(found):
        points = zip(curve(runs, "severity"), curve(runs, "psnr"), steps_of(runs[0]), strict=True)
        allowed = [(severity, psnr, weight, step) for severity, psnr, step in points if psnr >= -LIMIT]
        best[reward] = min([best[reward], *allowed] if reward in best else allowed)  # the first one is at 0, 0
    rows = ["| climbed | severity | PSNR, dB | λ | step |", "|---|---:|---:|---:|---:|"]
    for reward, (severity, psnr, weight, step) in best.items():
        rows.append(f"| {REWARDS[reward]} | {severity:+.4f} | {psnr:+.4f} | {weight:g} | {step} |")
    return "\n".join(rows) + "\n"


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Severity over PSNR, both as changes: a line for each reward and weight, from (0, 0) on; means over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    named = set()
    for reward, weight, runs in grouped(found):
        label = None if reward in named else REWARDS[reward]
        named.add(reward)
        color, size = f"C{list(REWARDS).index(reward)}", 2 + weight**0.5  # larger marks: a larger weight
        axis.plot(curve(runs, "psnr"), curve(runs, "severity"), marker=".", ms=size, lw=1, color=color, label=label)
    axis.axhline(0, color="0.7", lw=0.7)
    axis.set(xlabel="change of PSNR, dB", ylabel="change of severity (less is better)")
    axis.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(path)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders with index.jsonl")
    parser.add_argument("--rewards", nargs="+", choices=list(REWARDS), default=list(REWARDS))
    parser.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS), help="λ of Eq. 2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=0, help=f"of each run; default: {STEPS['refl']}")
    parser.add_argument("--photos", type=int, default=32, help="held-out photos")
    parser.add_argument("--runs", type=Path, default=Path("runs/rl_rewards"), help="folder for the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="file for the figure")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    path = args.results / "rl_rewards.json"
    found: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.is_file() else []
    for seed, weight, reward in product(args.seeds, args.weights, args.rewards):
        settings = settings_of(reward, weight, seed, args)
        key = key_of(reward, settings)
        if any(r["key"] == key for r in found):
            continue
        print(f"{REWARDS[reward]}, weight {weight:g}, seed {seed}", flush=True)
        made = run([], settings, args.runs / hashlib.sha256(key.encode()).hexdigest()[:12], {})
        this = {"reward": reward, "weight": weight, "seed": seed}
        found = [r for r in found if any(r.get(name) != value for name, value in this.items())]  # of other settings
        found.append({**this, "key": key, **made})
        args.results.mkdir(parents=True, exist_ok=True)
        write_json(path, {"runs": found})
        write(found, path, args.figure)
    print(table(found))


def write(found: list[dict[str, Any]], path: Path, figure: Path) -> None:
    """The tables beside the results, and the figure."""
    text = f"{EXPECTED}\n\n{NOTE}\n\n{table(found)}\n{WITHIN}\n\n{within(found)}"
    path.with_suffix(".md").write_text(text)
    draw(found, figure)


if __name__ == "__main__":
    main()
