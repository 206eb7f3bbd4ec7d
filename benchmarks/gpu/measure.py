"""`python -m benchmarks.gpu.measure <results> <part> <seconds>`: times on the GPU, beside ceilings of the same run.

The results are written after every cell, and a cell is in them as unfinished while it runs: a process that crashes,
hangs or is killed loses nothing, and the next one goes on behind it.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.cases import GPU_CASES, Case, differentiate, ones_for
from benchmarks.gpu import report
from benchmarks.gpu.model import VARIANTS, variant
from benchmarks.gpu.report import Row

DEVICE = "cuda"
EXECUTORS = report.EXECUTORS
FLUSH = 1 << 30
SLEEP = 4_000_000  # cycles, about 2 ms: longer than the host takes to enqueue any training step
WAKE = 20 * SLEEP  # brings the clocks up after a compilation
ROUNDS, WARMUP = 15, 3
OPERATOR_SECONDS, MODEL_SECONDS = 45.0, 120.0  # the longest that a cell may take, compilation included
UNFINISHED = "did not finish: a crash, a hang, or the end of the time"
BROKE = "broke the device, "
FRAGILE = 2  # cells that an executor may lose so, before the others go first: every such cell costs a start
AGAIN = 75  # exit status: this process cannot go on, another can


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
        for _ in range(WARMUP + ROUNDS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.buffer.sum()
            torch.cuda._sleep(SLEEP)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        return statistics.median(seconds[WARMUP:])

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


@dataclass(frozen=True)
class Cell:
    """One time to measure: a column of a row. `prepared` gives the call, compiled: it has run once."""

    row: Row
    name: str
    seconds: float
    prepared: Callable[[], AbstractContextManager[Callable[[], object]]]


@contextmanager
def prepared(case: Case, name: str) -> Iterator[Callable[[], object]]:
    """A case by one executor."""
    training = case.direction != "forward"
    torch.manual_seed(0)
    with torch.device(DEVICE):
        work = case.make()
    run = work.function("reference" if name in ("eager", "compile") else name)
    if name == "compile":
        run = torch.compile(run, fullgraph=True, dynamic=False)
    inputs = work.leaves(training)
    with torch.set_grad_enabled(training):
        incoming = ones_for(run(*inputs))

    def call() -> object:
        with torch.set_grad_enabled(training):
            outputs = run(*inputs)
            return differentiate(outputs, inputs, incoming) if training else outputs

    call()
    yield call


def cells(part: str) -> list[Cell]:
    """In order: all executors of every case, then, if `part` is "all", the whole model."""
    found = []
    for case in GPU_CASES:
        with torch.device("meta"):
            row = report.row(case, case.make().traffic(case.direction))
        found += [Cell(row, name, OPERATOR_SECONDS, partial(prepared, case, name)) for name in EXECUTORS]
    if part == "all":
        model = report.model_row()
        found += [Cell(model, name, MODEL_SECONDS, partial(variant, name, DEVICE)) for name in VARIANTS]
    return found


def release() -> None:
    """Leave the device's memory to what comes next; graphs of the compiler are cycles that hold tensors."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def watched(seconds: float, end: Callable[[], object] = lambda: os._exit(AGAIN)) -> Iterator[None]:
    """End the process if what is inside takes longer: a kernel that hangs cannot be interrupted otherwise."""
    watchdog = threading.Timer(seconds, end)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def attempt(cell: Cell, row: Row, timer: Timer, save: Callable[[], object]) -> None:
    """Measure one cell into `row`; an error stays beside the results. Exits where no further cell could run."""
    row["errors"][cell.name] = UNFINISHED
    save()
    try:
        release()
        with watched(cell.seconds), cell.prepared() as call:
            row["seconds"][cell.name], row["peak"][cell.name] = timer(call), timer.peak(call)
        del row["errors"][cell.name]
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        row["errors"][cell.name] = f"{type(error).__name__}: {lines[0][:200]}"
        if timer.broken():
            row["errors"][cell.name] = BROKE + row["errors"][cell.name]
            save()
            raise SystemExit(AGAIN) from error
    save()


def missing(result: Row, part: str) -> list[Cell]:
    """The cells that the results lack, those of executors that ended the process again and again last."""
    errors = [item for row in result["rows"] for item in row["errors"].items()]
    lost = [name for name, why in errors if why.startswith((UNFINISHED, BROKE))]
    fresh = []
    for cell in cells(part):
        row = report.find(result, cell.row)
        if cell.name not in row["seconds"] and cell.name not in row["errors"]:
            fresh.append(cell)
    return sorted(fresh, key=lambda cell: lost.count(cell.name) >= FRAGILE)


def main(path: Path, part: str, seconds: float, timer: Timer | None = None) -> None:
    end = time.monotonic() + seconds
    result, timer = report.load(path), timer or Timer()
    save = partial(report.write, result, path)
    if not result["ceilings"]:
        result["ceilings"] = ceilings(timer)
    for cell in missing(result, part):
        if time.monotonic() >= end:
            print(f"no time left: {cell.row['operator']} {cell.name} and what follows is not measured", flush=True)
            return
        row = report.find(result, cell.row)
        attempt(cell, row, timer, save)
        print(report.line(row, cell.name, result["ceilings"]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
