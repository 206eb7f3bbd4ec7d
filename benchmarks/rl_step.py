"""``python -m benchmarks.rl_step DATA...``: where the time of a step of reinforcement learning goes.

Each algorithm with its default settings against `finpercep-tiny`, on the CPU with one thread: the embedded generator,
and a small random pipeline in Stable Diffusion 3's layout. A row is a process of its own, whose peak memory is the
row's. Medians over steps after a warm-up. The reward's part has its backward pass too, which ReFL needs. Of Flow-GRPO
besides: generator and reward compiled by `torch.compile`, which takes a minute or more; and the operators in its
loop, forward and backward, compiled kernels and their PyTorch definitions in turns from step to step.

Writes `results/rl_step.json` and `.md` after each row; rows that are in it already, with the same settings on the same
device, are not repeated.
"""

from __future__ import annotations

import argparse
import inspect
import json
import resource
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.report import RESULTS, device_name
from finpercep import ops
from finpercep.io.files import atomic_write, write_json
from finpercep.rl import refl
from finpercep.rl.clock import OTHER
from finpercep.rl.settings import resolve
from finpercep.rl.trainer import RLTrainer

NAME = "rl_step"
TINY, SD3 = "finpercep-sr-tiny", "SD3 layout"
ALGORITHMS = ("refl", "dpo", "grpo", "nft")
MODES = ("eager", "compiled")
OPERATORS = [name for name in ops.__all__ if "backend" in inspect.signature(getattr(ops, name)).parameters]
"""What a step calls of these is measured. Gradients go from results to first arguments, where there are any."""
SETTINGS = ["eval_photos=1", "monitors.judge=''"]
PARTS = ("rollout", "reward", "update", OTHER)
WARM, LEAST = 2, 6
BAR = 0.2
"""Of a step of the embedded generator, the most that the reward may take."""


def in_own_process(row: dict[str, Any], data: list[str], seconds: float) -> dict[str, Any]:
    """`measure` in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, row, data, seconds).result()


def measure(row: dict[str, Any], data: list[str], seconds: float) -> dict[str, Any]:
    """One row: seconds of parts of the steps or of operators, and peak memory in bytes."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        generator = TINY if row["generator"] == TINY else str(small_sd3(Path(folder)))
        given = {"data": data, "out": folder, "generator": generator, "algorithm": {"name": row["algorithm"]}}
        given["compile"] = row["mode"] == "compiled"
        trainer = RLTrainer(resolve(None, row["settings"], given))
    before = peak()
    found = operators(trainer, seconds) if row["mode"] == "operators" else parts(trainer, seconds)
    return {**found, "peak": peak(), "peak_before": before}


def small_sd3(folder: Path) -> Path:
    """The pipeline that the tests of training have, two blocks of a transformer and a ControlNet of one."""
    save: Callable[[Path], Path] = import_module("tests.rl.generators.pipelines").save_sd3  # tests have no types
    return save(folder)


def peak() -> int:
    """Most bytes that this process has had in memory (Linux)."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def steps(trainer: RLTrainer, seconds: float) -> Iterator[int]:
    """Makes steps, and gives the number of each behind it; those below 0 are for warming up."""
    number, end = -WARM, 0.0
    while number < LEAST or time.perf_counter() < end:
        if number == 0:
            end = time.perf_counter() + seconds
        if "skipped" in trainer.step():
            raise RuntimeError("a step had nothing to learn from: its time is not that of a step")
        yield number
        number += 1


def parts(trainer: RLTrainer, seconds: float) -> dict[str, Any]:
    """Medians over steps: seconds of the step and of its parts, and the reward's share; and of all of warming up."""
    backward: defaultdict[str, float] = defaultdict(float)

    def watched(*arguments: Any) -> Any:
        output = score(*arguments)
        watch(output.score, arguments[1], "reward", backward)
        return output

    score, rows, began, warm = refl.score, [], time.perf_counter(), 0.0
    with patch.object(refl, "score", watched):
        for number in steps(trainer, seconds):
            found, passed = trainer.clock.seconds(), backward.pop("reward", 0.0)
            total = sum(found.values())
            found["reward"] += passed  # for the clock, gradients that pass through the reward are the update's
            found["update"] -= passed
            if number < 0:
                warm = time.perf_counter() - began
            else:
                rows.append({**{name: found[name] for name in PARTS}, "step": total, "share": found["reward"] / total})
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {"steps": len(rows), "warm_up": warm, **medians}


def watch(result: Tensor, source: Any, name: str, into: dict[str, float]) -> None:
    """Add up the seconds between the gradient's coming to `result` and its leaving for what `source` was made of."""
    if not result.requires_grad or not isinstance(source, Tensor) or not source.requires_grad:
        return
    began = 0.0

    def begin(gradient: Tensor) -> None:
        nonlocal began
        began = time.perf_counter()

    def end(gradient: Tensor) -> None:
        into[name] += time.perf_counter() - began

    result.register_hook(begin)
    source.register_hook(end)


def operators(trainer: RLTrainer, seconds: float) -> dict[str, Any]:
    """Operator -> medians over steps of what its kernel and its definition take in a whole step, seconds."""
    found: dict[str, dict[str, list[float]]] = {name: {"kernel": [], "reference": []} for name in OPERATORS}
    totals, made = [], {}
    with timed_operators() as (chosen, spent, calls):
        for number in steps(trainer, seconds):
            if number >= 0:
                for name, by_backend in found.items():
                    by_backend[chosen[0] or "kernel"].append(spent[name])
                totals.append(sum(trainer.clock.seconds().values()))
            chosen[0], made = None if chosen[0] else "reference", dict(calls)
            spent.clear()
            calls.clear()
    rows = {name: {one: statistics.median(values) for one, values in found[name].items()} for name in made}
    return {"steps": len(totals), "step": statistics.median(totals), "operators": rows, "calls": made}


@contextmanager
def timed_operators() -> Iterator[tuple[list[str | None], dict[str, float], Counter[str]]]:
    """Inside, the operators run by the backend in the list, and add up their seconds and calls by name."""
    chosen: list[str | None] = [None]
    spent, calls = defaultdict[str, float](float), Counter[str]()

    def timed(name: str, operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = operator(*arguments, **options, backend=chosen[0])
            spent[name] += time.perf_counter() - began
            calls[name] += 1
            end = result.log_prob if name == "sde_step" else result[0]
            watch(end, arguments[0], name, spent)
            return result

        return call

    with ExitStack() as stack:
        for name in OPERATORS:
            stack.enter_context(patch.object(ops, name, timed(name, getattr(ops, name))))
        yield chosen, spent, calls


def markdown(found: dict[str, Any]) -> str:
    """Both tables."""
    lines = [
        f"{found['device']}, torch {found['torch']}; milliseconds, medians over the steps of a row. "
        "What is compiled: how many times as fast its step is, and how long the first two took.",
        "",
        "| generator | algorithm | | steps | rollout | reward | update | data | step | reward's share | peak MB |",
        "|---|---|---|" + "---:|" * 8,
    ]
    rows = [row for row in found["rows"] if row["mode"] in MODES]
    for row in rows:
        times = " | ".join(f"{1e3 * row[name]:.0f}" for name in (*PARTS, "step"))
        mode = row["mode"]
        if eager := [r for r in rows if mode != "eager" and same(r, row) and r["mode"] == "eager"]:
            mode += f": {eager[0]['step'] / row['step']:.2f} × after {row['warm_up']:.0f} s"
        memory = f"{row['peak'] / 1e6:.0f} ({row['peak_before'] / 1e6:.0f} before the first step)"
        lines.append(
            f"| {row['generator']} | {row['algorithm']} | {mode} | {row['steps']} | {times} "
            f"| {100 * row['share']:.0f} % | {memory} |"
        )
    shares = {row["algorithm"]: row["share"] for row in rows if (row["generator"], row["mode"]) == (TINY, "eager")}
    if shares:
        above = [name for name, share in shares.items() if share > BAR]
        kept = f"missed by {', '.join(above)}" if above else f"kept by {', '.join(shares)}"
        lines += ["", f"The bar, a share of at most {100 * BAR:.0f} % with the embedded generator, eagerly: {kept}."]
    with_operators = [row for row in found["rows"] if "operators" in row]
    if with_operators:
        lines += [
            "",
            "| operator | generator | calls in a step | kernel | definition | × | kernel's share of the step |",
        ]
        lines += ["|---|---|" + "---:|" * 5]
    for row in with_operators:
        for name, seconds in row["operators"].items():
            kernel, reference = seconds["kernel"], seconds["reference"]
            lines.append(
                f"| {name} | {row['generator']} | {row['calls'][name]} | {1e3 * kernel:.2f} | {1e3 * reference:.2f} "
                f"| {reference / kernel:.1f} | {100 * kernel / row['step']:.2f} % |"
            )
    return "\n".join(lines) + "\n"


def same(row: dict[str, Any], other: dict[str, Any]) -> bool:
    return (row["generator"], row["algorithm"]) == (other["generator"], other["algorithm"])


def wanted(generators: Sequence[str], algorithms: Sequence[str]) -> list[dict[str, Any]]:
    """What tells the rows apart, in the order of the tables."""
    rows = [
        {"generator": generator, "algorithm": algorithm, "mode": mode}
        for generator in generators
        for algorithm in algorithms
        for mode in (("eager", "operators", "compiled") if algorithm == "grpo" else ("eager",))
    ]
    return [{**row, "settings": SETTINGS} for row in rows]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="folders with index.jsonl")
    parser.add_argument("--generators", nargs="+", choices=[TINY, SD3], default=[TINY, SD3])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--seconds", type=float, default=5.0, help="of the steps that a row measures, 6 or more")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    given = parser.parse_args(words)
    torch.set_num_threads(1)  # as the rows; the device's name has it
    path, machine = given.results / f"{NAME}.json", {"device": device_name(), "torch": torch.__version__}
    old = json.loads(path.read_text()) if path.is_file() else {}
    measured = old["rows"] if {name: old.get(name) for name in machine} == machine else []
    everything = wanted([TINY, SD3], ALGORITHMS)
    for row in sorted(wanted(given.generators, given.algorithms), key=lambda row: row["mode"] == "compiled"):
        if any(row.items() <= known.items() for known in measured):
            continue
        began = time.perf_counter()
        figures = in_own_process(row, given.data, given.seconds)
        measured.append({**row, **figures, "row_seconds": time.perf_counter() - began})
        print(json.dumps(measured[-1]), flush=True)
        ordered = [known for one in everything for known in measured if one.items() <= known.items()]
        write_json(path, {**machine, "rows": ordered})
        with atomic_write(path.with_suffix(".md")) as file:
            file.write(markdown({**machine, "rows": ordered}).encode())
    print(path.with_suffix(".md").read_text() if path.is_file() else "nothing to do")


if __name__ == "__main__":
    main()
