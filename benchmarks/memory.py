"""`python -m benchmarks.memory [CASE …] [--turns 5]`: what it is worth on a CPU to keep freed memory.

`finpercep.runs.memory.keep_freed_memory` sets the C library's allocator once for a process. So every turn is two fresh
processes, one with it and one without, which alternate in who is first; each repeats its case and gives the median and
the most memory that it held. The ratio is the median over turns. Writes `benchmarks/results/memory.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.report import device_name, write_results
from finpercep import RewardModel
from finpercep.runs.memory import keep_freed_memory

WARM, LEAST, SECONDS = 2, 5, 4.0
Case = Callable[[], object]


def scoring(name: str, side: int, batch: int) -> Case:
    """Score and map of random images."""
    model = RewardModel.from_pretrained(name).eval().requires_grad_(False)
    images = torch.rand(batch, 3, side, side)

    @torch.no_grad()
    def case() -> object:
        return model(images)

    return case


def ascent(name: str, side: int, batch: int) -> Case:
    """The same with a gradient to the pixels, as ReFL takes it."""
    model = RewardModel.from_pretrained(name).eval().requires_grad_(False)
    images = torch.rand(batch, 3, side, side)

    def case() -> object:
        pixels = images.clone().requires_grad_()
        out = model(pixels)
        return torch.autograd.grad(out.score.sum() + out.map.mean(), pixels)

    return case


def training(name: str, side: int, batch: int) -> Case:
    """Forward and backward to all weights, which is most of a step of `train-reward`."""
    model = RewardModel.from_pretrained(name).train()
    images = torch.rand(batch, 3, side, side)

    def case() -> object:
        model.zero_grad(set_to_none=True)
        out = model(images)
        return (out.score.sum() + out.map.mean()).backward()

    return case


CASES: dict[str, Callable[[], Case]] = {
    "finpercep-tiny, score and map, one of 512²": lambda: scoring("finpercep-tiny", 512, 1),
    "finpercep-tiny, gradient to pixels, 8 of 256²": lambda: ascent("finpercep-tiny", 256, 8),
    "finpercep-tiny, training, 24 of 128²": lambda: training("finpercep-tiny", 128, 24),
    "finpercep-small, score and map, one of 512²": lambda: scoring("finpercep-small", 512, 1),
    "finpercep-small, gradient to pixels, 8 of 256²": lambda: ascent("finpercep-small", 256, 8),
    "finpercep-small, training, 24 of 160²": lambda: training("finpercep-small", 160, 24),
}


def child(name: str, keep: bool, seconds: float) -> dict[str, Any]:
    """Measure one case in this process: median ms, and the most MiB it held."""
    if keep and not keep_freed_memory():
        raise SystemExit("the C library of this system has no mallopt, or the environment sets it already")
    case, took = CASES[name](), list[float]()
    for _ in range(WARM):
        case()
    until = time.perf_counter() + seconds
    while len(took) < LEAST or time.perf_counter() < until:
        start = time.perf_counter()
        case()
        took.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ms": 1e3 * statistics.median(took), "peak_mib": peak}


def turn(name: str, keep: bool, seconds: float) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.memory", name, "--child", "keep" if keep else "plain"]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([*words, "--seconds", str(seconds)], env=os.environ | threads, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with exit status {done.returncode}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(name: str, turns: int, seconds: float) -> dict[str, Any]:
    """Both ways, turn by turn."""
    pairs = []
    for i in range(turns):
        first = turn(name, i % 2 == 0, seconds)
        second = turn(name, i % 2 == 1, seconds)
        pairs.append((second, first) if i % 2 == 0 else (first, second))
    ratios = [plain["ms"] / kept["ms"] for plain, kept in pairs]
    row: dict[str, Any] = {"case": name, "turns": turns, "times": statistics.median(ratios)}
    row["times_range"] = [min(ratios), max(ratios)]
    for i, way in enumerate(("plain", "kept")):
        for figure in ("ms", "peak_mib"):
            row[f"{way}_{figure}"] = statistics.median(pair[i][figure] for pair in pairs)
    return row


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{device_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads; medians, range of ratios.",
        "",
        "| | as it is | memory kept | times as fast | most memory |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        (low, high), plain, kept = row["times_range"], row["plain_peak_mib"], row["kept_peak_mib"]
        lines.append(
            f"| {row['case']} | {row['plain_ms']:.1f} ms | {row['kept_ms']:.1f} ms "
            f"| {row['times']:.2f} ({low:.2f}–{high:.2f}) | {plain:.0f} → {kept:.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=f"of: {'; '.join(CASES)}")
    parser.add_argument("--turns", type=int, default=5, help="pairs of processes for each case")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="in each process")
    parser.add_argument("--child", choices=("plain", "keep"), help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    unknown = [name for name in args.cases if name not in CASES]
    if unknown:
        parser.error(f"expected a case of: {'; '.join(CASES)}; got {unknown[0]!r}")
    if args.child:
        print(json.dumps(child(args.cases[0], args.child == "keep", args.seconds)))
        return
    rows = []
    for name in args.cases:
        rows.append(measure(name, args.turns, args.seconds))
        print(markdown(rows[-1:]).splitlines()[-1], flush=True)
    write_results("memory", rows, markdown(rows))


if __name__ == "__main__":
    main()
