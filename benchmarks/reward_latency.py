"""`python -m benchmarks.reward_latency [MODEL …]`: how long a reward takes here, 512 × 512, batches of 1 and 16.

On a GPU eagerly and as the replay of a captured graph; also forward and backward to the pixels. Milliseconds, p50 and
p95 of 30 calls, each of which is waited for. Writes `results/<device>-reward.json`.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import benchmarks.gpu  # noqa: F401  (finds finpercep.kernels in a tree that nobody installed)
from benchmarks.report import device_name
from finpercep import RewardModel
from finpercep.io.files import atomic_write

SIDE, CALLS, WARMUP = 512, 30, 5
BATCHES, DTYPES = (1, 16), (torch.float32, torch.bfloat16)


def percentiles(call: Callable[[], object], device: str) -> dict[str, float]:
    """p50 and p95, in milliseconds."""
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    seconds = []
    for _ in range(WARMUP + CALLS):
        wait()
        start = time.perf_counter()
        call()
        wait()
        seconds.append(time.perf_counter() - start)
    ordered = sorted(seconds[WARMUP:])
    return {"p50": 1e3 * ordered[CALLS // 2], "p95": 1e3 * ordered[int(0.95 * CALLS)]}


def captured(model: RewardModel, images: Tensor) -> Callable[[], object]:
    """A replay of `model(images)`."""
    with torch.cuda.stream(torch.cuda.Stream()):
        model(images)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(images)
    return graph.replay


def measure(name: str, device: str) -> list[dict[str, Any]]:
    rows = []
    for dtype, batch in itertools.product(DTYPES, BATCHES):
        model = RewardModel.from_pretrained(name, dtype=dtype).to(device).requires_grad_(False)
        images = torch.rand(batch, 3, SIDE, SIDE, device=device, dtype=dtype)
        row: dict[str, Any] = {"model": name, "dtype": str(dtype).removeprefix("torch."), "batch": batch}
        with torch.no_grad():
            row["eager"] = percentiles(partial(model, images), device)
            if device == "cuda":
                row["graph"] = percentiles(captured(model, images), device)
        row["with gradient"] = percentiles(_ascent(model, images.requires_grad_(True)), device)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def _ascent(model: RewardModel, images: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(model(images).score.sum(), images)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [row for name in sys.argv[1:] or ["finpercep-tiny"] for row in measure(name, device)]
    path = Path(__file__).parent / "results" / f"{device_name()}-reward.json"
    with atomic_write(path) as file:
        file.write((json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
