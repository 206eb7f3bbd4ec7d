"""`python -m benchmarks.gpu.measure <results> <part> <seconds>`: times on the GPU, beside ceilings of the same run.

The results are written after every cell, and a cell is in them as unfinished while it runs: a process that crashes,
hangs or is killed loses nothing, and the next one goes on behind it.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case, Outputs, Work, differentiate, ones_for
from benchmarks.gpu import report
from benchmarks.gpu.cases import CASES
from benchmarks.gpu.model import VARIANTS, variant

DEVICE = "cuda"
FLUSH = 1 << 30
SLEEP = 4_000_000  # cycles, about 2 ms: longer than the host takes to enqueue any training step
WAKE = 20 * SLEEP  # brings the clocks up after a compilation
ROUNDS, WARMUP = 15, 3
PARTS = {"rows": ("eager", "cuda", "triton", "compile"), "rest": ("compile-max",)}
# The longest that a cell may take, compilation included.
CELL_SECONDS = {"eager": 30.0, "cuda": 30.0, "triton": 30.0, "compile": 45.0, "compile-max": 60.0}
MODEL_SECONDS = 120.0
UNFINISHED = "did not finish: a crash, a hang, or the end of the time"
BROKE = "broke the device, "
FRAGILE = 2  # cells that an executor may lose so, before the others go first
AGAIN = 75  # exit status: this process cannot go on, another can

Row = dict[str, Any]


class Timer:
    """Median seconds, and memory, of a call on the current device, with a cold cache.

    Between two device events lies only the call. The buffer that is read before it empties the cache (written, it would
    leave lines that are written back during the call), and the sleep keeps the device busy while the host enqueues:
    small operators are timed by what the GPU does and not by Python.
    """

    def __init__(self) -> None:
        self.buffer = torch.zeros(FLUSH // 4, device=DEVICE)

    def __call__(self, call: Callable[[], object]) -> float:
        seconds = []
        torch.cuda._sleep(WAKE)
        for index in range(WARMUP + ROUNDS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.buffer.sum()
            torch.cuda._sleep(SLEEP)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            if index >= WARMUP:
                seconds.append(start.elapsed_time(end) / 1e3)
        return statistics.median(seconds)

    def peak(self, call: Callable[[], object]) -> int:
        """Bytes of memory beyond what is held before the call."""
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held

    def broken(self) -> bool:
        """Whether an error of a kernel has made the device unusable for this process."""
        try:
            torch.cuda.synchronize()
        except Exception:
            return True
        return False


def ceilings(timer: Timer) -> dict[str, float]:
    """GB/s of a 4 GB copy (bytes read and written), TFLOP/s of a bf16 matrix product, seconds of an empty launch."""
    source = torch.rand(1 << 29, device=DEVICE)
    target = torch.empty_like(source)
    copy = timer(lambda: target.copy_(source))
    side = 8192
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product = timer(lambda: a @ b)
    return {
        "copy_gbps": 2 * source.nbytes / copy / 1e9,
        "matmul_tflops": 2 * side**3 / product / 1e12,
        "launch_seconds": timer(lambda: torch.cuda._sleep(1)),
    }


def executor(work: Work, name: str) -> Callable[..., Outputs]:
    """One of `EXECUTORS` as a function of the inputs."""
    if name == "eager":
        return work.reference
    if name in report.RIVALS:
        mode = "max-autotune-no-cudagraphs" if name == "compile-max" else None
        return torch.compile(work.reference, fullgraph=True, dynamic=False, mode=mode)
    return work.ours(name)


def prepare(case: Case, name: str) -> Callable[[], object]:
    """The call of a cell, compiled: it has run once in every direction that it has."""
    training = case.direction != "forward"
    with torch.device(DEVICE):
        work = case.make()
    run, inputs = executor(work, name), work.leaves(training)
    with torch.set_grad_enabled(training):
        incoming = ones_for(run(*inputs))

    def call() -> object:
        with torch.set_grad_enabled(training):
            outputs = run(*inputs)
            return differentiate(outputs, inputs, incoming) if training else outputs

    call()
    return call


@contextmanager
def watched(seconds: float) -> Iterator[None]:
    """End the process if what is inside takes longer: a kernel that hangs cannot be interrupted otherwise."""
    watchdog = threading.Timer(seconds, os._exit, [AGAIN])
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def attempt(
    name: str,
    errors: Row,
    seconds: float,
    save: Callable[[], object],
    timer: Timer,
    cell: Callable[[], None],
) -> None:
    """Run one cell; an error of any kind stays beside the results. Exits where no further cell could run."""
    errors[name] = UNFINISHED
    save()
    try:
        with watched(seconds):
            cell()
        del errors[name]
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        errors[name] = f"{type(error).__name__}: {lines[0][:200]}"
        print(f"{name}: {errors[name]}", flush=True)
        if timer.broken():
            errors[name] = BROKE + errors[name]
            save()
            raise SystemExit(AGAIN) from error
    save()


def measure_case(case: Case, name: str, row: Row, timer: Timer) -> None:
    """Time and memory of one executor, into its row."""
    torch._dynamo.reset()
    if name in report.RIVALS:
        gc.collect()  # graphs of the compiler are cycles that hold tensors
    torch.cuda.empty_cache()
    with torch.device("meta"):
        row["bytes"] = case.make().traffic(case.direction)
    call = prepare(case, name)
    row["seconds"][name], row["peak"][name] = timer(call), timer.peak(call)


def fragile(result: Row) -> set[str]:
    """Executors whose kernels ended the process again and again: every such cell costs a start."""
    lost = [
        name for row in result["rows"] for name, why in row["errors"].items() if why.startswith((UNFINISHED, BROKE))
    ]
    return {name for name in lost if lost.count(name) >= FRAGILE}


def measure_cases(
    result: Row,
    cases: Sequence[Case],
    names: Sequence[str],
    timer: Timer,
    left: Callable[[], float],
    save: Callable[[], object],
) -> None:
    """All cells that the results lack, while there is time; those of fragile executors last."""
    last = fragile(result)
    for group in ([n for n in names if n not in last], [n for n in names if n in last]):
        for case in cases:
            row = report.row_for(result, case)
            missing = [name for name in group if name not in row["seconds"] and name not in row["errors"]]
            for name in missing:
                if left() <= 0:
                    print(f"no time left: {case.name} {name} and what follows is not measured", flush=True)
                    return
                cell = partial(measure_case, case, name, row, timer)
                attempt(name, row["errors"], CELL_SECONDS.get(name, 30.0), save, timer, cell)
            if missing:
                print(line(row, result["ceilings"]), flush=True)


def measure_model(result: Row, timer: Timer, left: Callable[[], float], save: Callable[[], object]) -> None:
    """The variants of the whole model that the results lack, while there is time."""
    model = result["model"] or {"seconds": {}, "errors": {}}
    result["model"] = model

    def cell(name: str) -> None:
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
        with variant(name, DEVICE) as call:
            model["seconds"][name] = timer(call)

    for name in VARIANTS:
        if name not in model["seconds"] and name not in model["errors"] and left() > 0:
            attempt(name, model["errors"], MODEL_SECONDS, save, timer, partial(cell, name))
    print(report.times_of_model(model["seconds"]), flush=True)


def line(row: Row, ceiling: dict[str, float]) -> str:
    """One row as it appears while measuring."""
    times = " ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in row["seconds"].items())
    name, share = report.best(row), ""
    if name is not None:
        share = f", {row['bytes'] / row['seconds'][name] / 1e9 / ceiling['copy_gbps']:.0%} of copy"
    return f"{row['operator']} {row['direction']} {row['dtype']} {row['size']}: {times} µs{share}"


def main(path: Path, part: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    result = json.loads(path.read_text())

    def left() -> float:
        return end - time.monotonic()

    save = partial(report.write, result, path)
    timer = Timer()
    if not result["ceilings"]:
        result["ceilings"] = ceilings(timer)
        save()
    if part == "model":
        measure_model(result, timer, left, save)
    else:
        measure_cases(result, CASES, PARTS[part], timer, left, save)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
