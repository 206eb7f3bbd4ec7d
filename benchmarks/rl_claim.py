"""``python -m benchmarks.rl_claim DATA... --stages RM0 RM1 RM2``: what the curriculum does to a generator, at our
scale.

{ReFL, DPO, GRPO, NFT} x {RM_0 alone, the full reward from the start, the curriculum, the curriculum with refresh} x
seeds, ReFL at several weights of the reward and, as control, without one; as many steps for each variant of an
algorithm; but for ReFL with spatial credit where a stage has a map; the embedded generator on the CPU, one run after
the other.
Measured on `val` photos by what no run climbs: a judging model, PSNR, SSIM, the severity of M_gt, ST-LPIPS where it is
installed; and, for comparison alone, by the scores of RM_0 and of RM_2 as they were before any refresh.

Results, after each run: `results/rl_claim.json` and `.md`, and the figure of docs/rl.md. Runs that are in it already,
with the same settings and rewards, are not repeated; a run that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.reward_runs import cell
from finpercep.io.files import write_json
from finpercep.rewards import load_reward
from finpercep.rl.loop import train
from finpercep.rl.measures import ST_LPIPS
from finpercep.rl.settings import resolve

RESULTS = Path(__file__).parent / "results"
NAME = "rl_claim"
JUDGE = "finpercep-small"
STEPS = {"refl": 120, "dpo": 60, "grpo": 48, "nft": 39}
LR = {"refl": 2e-4, "dpo": 2e-4, "grpo": 3e-4, "nft": 2e-4}
SETTINGS = {
    "refl": [],
    "dpo": ["algorithm.beta=200"],
    "grpo": ["algorithm.window=[1,2]", "algorithm.shared_noise=true"],
    "nft": ["algorithm.advantage_clip=1"],
}
WEIGHTS = (1.0, 5.0, 25.0)
"""λ of Eq. 2: how hard ReFL pushes; of the variant without a reward it is 0."""
VARIANTS = {
    "RM_0": "IQA-only: RM_0 for all steps",
    "full": "the full reward, RM_2, from the start",
    "full-restarts": "the same, with a learning rate that begins anew where the curriculum's does, of ReFL",
    "ccl": "the curriculum: RM_0, RM_1, RM_2, a third of the steps each",
    "ccl-refresh": "the curriculum, RM_1 and RM_2 refreshed twice each",
    "photos": "no reward: the pre-training term on photos alone, of ReFL",
}
FIGURES = {
    "judge": "judge",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "severity": "severity (less is better)",
    ST_LPIPS: "ST-LPIPS (less is better)",
    "RM_0": "S of RM_0",
    "RM_2": "S of RM_2",
}
"""Titles. Some runs climb the last two, so these are no evidence."""
EXPECTED = """Expected beforehand, from the paper: RM_0 alone raises its own score and no held-out measure, or makes
them worse; the full reward from the start is held back by what it says early on, or oscillates; the curriculum ends
highest on held-out measures, a little higher with refresh. Of ReFL at λ = 1, after λ = 5 was known: all variants
alike, severity lower by 0.006 to 0.012 and no PSNR lost, the curriculum not ahead of the full reward; at λ = 25: all
lose PSNR, RM_0 and the full reward about 1 dB, the curriculum 0.7, with refresh 0.4, and severity rises in all."""
PAPER = """The paper's rows, of SUPIR, as a published summary has them; all measures but LPIPS need no reference:

| | LPIPS (less is better) | MUSIQ | MANIQA | CLIP-IQA |
|---|---:|---:|---:|---:|
| before training | 0.452 | 65.67 | 0.629 | 0.572 |
| IQA-only: "fast convergence but reward hacking" | 0.465 | 64.89 | 0.612 | 0.589 |
| FinPercep-RM without CCL: "unstable oscillation" | | | | |
| FinPercep-RM with CCL: "stable, optimal convergence" | 0.428 | 67.23 | 0.648 | 0.586 |"""


def stages(variant: str, rewards: list[str], steps: int, lr: float) -> list[dict[str, Any]]:
    """The stages of a variant, as settings."""
    zero, one, two = rewards
    alone = {"RM_0": [zero], "photos": [zero], "full": [two], "full-restarts": [two, two, two]}
    chosen = alone.get(variant, [zero, one, two])
    return [{"reward": reward, "steps": steps // len(chosen), "lr": lr} for reward in chosen]


def settings_of(algorithm: str, variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides a run, but for the folder."""
    steps = args.steps or STEPS[algorithm]
    metrics = [args.stages[0], args.stages[2]]
    if importlib.util.find_spec("stlpips_pytorch") is not None:
        metrics.append(ST_LPIPS)
    every = max(1, steps // 6)
    options = {"map_weight": 1.0} if algorithm != "refl" and variant != "RM_0" else {}
    return {
        "data": args.data,
        "algorithm": {"name": algorithm, **options},
        "stages": stages(variant, args.stages, steps, LR[algorithm]),
        "refresh": {"every": every, "first_stage": 1} if variant == "ccl-refresh" else {"every": 0},
        "monitors": {"judge": JUDGE, "metrics": metrics},
        "eval_photos": args.photos,
        "eval_every": max(1, steps // 3),
        "save_every": every,
        "seed": seed,
    }


def key_of(algorithm: str, variant: str, weight: float | None, settings: dict[str, Any], prints: dict[str, str]) -> str:
    """What a result is of: the rewards by what they are, not by where they lie; the data by name."""
    settings = {**settings, "data": [Path(folder).name for folder in settings["data"]]}
    text = json.dumps([algorithm, variant, settings, assignments(algorithm, weight)], sort_keys=True)
    for place, fingerprint in prints.items():
        text = text.replace(json.dumps(place), json.dumps(fingerprint))
    return text


def assignments(algorithm: str, weight: float | None) -> list[str]:
    """Settings beside `settings_of`."""
    return [*SETTINGS[algorithm], *([] if weight is None else [f"algorithm.weight={weight:g}"])]


def weights_of(algorithm: str, variant: str, weights: Sequence[float]) -> Sequence[float | None]:
    """What a variant is run with; None where the loss has no such weight, and nothing for controls of ReFL alone."""
    if algorithm != "refl":
        return [] if variant in ("photos", "full-restarts") else [None]
    return [0.0] if variant == "photos" else weights


def run(chosen: list[str], settings: dict[str, Any], out: Path, names: dict[str, str]) -> dict[str, Any]:
    """One run: step -> figures at each measurement, alarms, and how long it took here."""
    started, worked = time.perf_counter(), time.process_time()
    train(resolve(None, chosen, {**settings, "out": str(out)}))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    curve = {}
    for line in lines:
        found = {names.get(key[5:], key[5:]): value for key, value in line.items() if key.startswith("eval/")}
        if found:
            curve[str(line["step"])] = {name: value for name, value in found.items() if name != "alarms"}
    alarms = [text for line in lines for text in line.get("alarms", ())]
    times = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}
    return {"curve": curve, "alarms": alarms, **times}


def changes(runs: list[dict[str, Any]], name: str) -> list[float]:
    """From the first measurement to the last one, run by run."""
    curves = [[run["curve"][step] for step in steps_of(run)] for run in runs]
    return [curve[-1][name] - curve[0][name] for curve in curves if name in curve[0]]


def steps_of(run: dict[str, Any]) -> list[str]:
    """Of the measurements, ascending: a file has its names in the order of text."""
    return sorted(run["curve"], key=int)


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: the mean change of each figure ± its standard deviation over seeds."""
    titles = list(FIGURES.values())
    rows = ["| | λ | | seeds | " + " | ".join(titles) + " | alarms |", "|---|---:|---|" + "---:|" * (len(titles) + 2)]
    for algorithm, weight, variant, runs in grouped(found):
        cells = [cell(changes(runs, name), "+.4f") for name in FIGURES]
        alarms = sum(bool(run["alarms"]) for run in runs)
        first = f"| {algorithm} | {'' if weight is None else f'{weight:g}'} | {variant} | {len(runs)} | "
        rows.append(first + " | ".join(cells) + f" | {alarms} |")
    return "\n".join(rows) + "\n"


def grouped(found: list[dict[str, Any]]) -> Iterator[tuple[str, float | None, str, list[dict[str, Any]]]]:
    """Runs by algorithm, weight and variant, in the order of the tables above."""
    for algorithm in STEPS:
        rows = {(r["weight"], r["variant"]) for r in found if r["algorithm"] == algorithm}
        for weight, variant in sorted(rows, key=lambda row: (row[0] or 0.0, list(VARIANTS).index(row[1]))):
            this = (algorithm, weight, variant)
            yield *this, [r for r in found if (r["algorithm"], r["weight"], r["variant"]) == this]


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Curves of the held-out figures, a row for each algorithm and weight: means over seeds, with their standard
    deviation. Each row of ReFL has its control."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups = list(grouped(found))
    pushed = dict.fromkeys((algorithm, weight) for algorithm, weight, *_ in groups if weight != 0)
    rows = list(pushed) or [("refl", 0.0)]  # the control alone
    figure = Figure(figsize=(2.6 * len(FIGURES), 2.4 * len(rows)), layout="constrained")
    for (algorithm, weight), axes in zip(rows, figure.subplots(len(rows), len(FIGURES), squeeze=False), strict=True):
        title = algorithm if weight is None else f"{algorithm}, λ = {weight:g}"
        for axis, (name, what) in zip(axes, FIGURES.items(), strict=True):
            axis.set_title(f"{title}: {what}", fontsize=8)
            axis.tick_params(labelsize=7)
            for of, given, variant, runs in groups:
                if of == algorithm and given in (weight, 0):
                    _line(axis, runs, name, variant)
    drawn = dict.fromkeys(variant for _, _, variant, _ in groups)
    lines = [Line2D([], [], color=color_of(variant), marker=".") for variant in drawn]
    figure.legend(lines, list(drawn), loc="outside upper center", ncols=len(drawn))
    FigureCanvasAgg(figure).print_png(path)


def color_of(variant: str) -> str:
    return f"C{list(VARIANTS).index(variant)}"


def _line(axis: Any, runs: list[dict[str, Any]], name: str, variant: str) -> None:
    """A figure's mean over seeds at each measurement, in its standard deviation; nothing if the runs lack it."""
    steps = [step for step in steps_of(runs[0]) if name in runs[0]["curve"][step]]
    values = [[r["curve"][step][name] for r in runs if step in r["curve"]] for step in steps]
    if not values:
        return
    means = [statistics.mean(v) for v in values]
    spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
    at, color = [int(step) for step in steps], color_of(variant)
    axis.plot(at, means, marker=".", color=color)
    low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
    axis.fill_between(at, low, high, color=color, alpha=0.15)


def write(found: list[dict[str, Any]], folder: Path, figure: Path) -> str:
    """All results, the table and the figure; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{NAME}.json", {"runs": found})
    text = table(found)
    variants = "".join(f"- {name}: {what}\n" for name, what in VARIANTS.items())
    note = (
        "Change from before training to its end on `val` photos, mean ± standard deviation over seeds. λ: the weight "
        "of the reward beside the pre-training term. S of RM_0 and of RM_2: as they were before any refresh; some runs "
        "climb them. Alarms: runs with one; it takes four measurements under one reward, which the stages of a "
        "curriculum do not have here.\n"
    )
    (folder / f"{NAME}.md").write_text(f"{EXPECTED}\n\n{note}{variants}\n{text}\n{PAPER}\n")
    draw(found, figure)
    return text


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders with index.jsonl")
    parser.add_argument("--stages", nargs=3, required=True, metavar="RM", help="RM_0, RM_1 and RM_2: names or folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--algorithms", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS), help="λ of Eq. 2, of ReFL")
    parser.add_argument("--steps", type=int, default=0, help="of each run, a multiple of 3; default: by the algorithm")
    parser.add_argument("--photos", type=int, default=32, help="held-out photos")
    parser.add_argument("--runs", type=Path, default=Path("runs") / NAME, help="folder for the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--figure", type=Path, default=Path("docs") / f"{NAME}.png")
    args = parser.parse_args(words)
    if args.steps % 3:
        parser.error(f"--steps: expected a multiple of 3, got {args.steps}")
    torch.set_num_threads(1)
    prints = {name: load_reward(name).fingerprint for name in (*args.stages, JUDGE)}
    names = {args.stages[0]: "RM_0", args.stages[2]: "RM_2"}
    path = args.results / f"{NAME}.json"
    found: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.is_file() else []
    keys = {}
    for seed in args.seeds:  # the seeds outside: a table of one seed is whole first
        for algorithm, variant in product(args.algorithms, args.variants):
            settings = settings_of(algorithm, variant, seed, args)
            for weight in weights_of(algorithm, variant, args.weights):
                key = key_of(algorithm, variant, weight, settings, prints)
                keys[key] = (settings, {"algorithm": algorithm, "weight": weight, "variant": variant, "seed": seed})
    for number, (key, (settings, this)) in enumerate(keys.items(), 1):
        if any(r["key"] == key for r in found):
            continue
        print(f"{number}/{len(keys)}: {', '.join(f'{name} {value}' for name, value in this.items())}", flush=True)
        digest = hashlib.sha256(key.encode()).hexdigest()[:8]
        out = args.runs / f"{this['algorithm']}-{this['variant']}-{this['seed']}-{digest}"
        made = run(assignments(this["algorithm"], this["weight"]), settings, out, names)
        found = [r for r in found if any(r[name] != value for name, value in this.items())]  # of other settings no more
        found.append({**this, "key": key, **made})
        write(found, args.results, args.figure)
    print(write(found, args.results, args.figure) if found else "nothing to do")


if __name__ == "__main__":
    main()
