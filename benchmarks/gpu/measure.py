"""Times on the GPU, with a cold cache, beside ceilings measured in the same run.

Between two device events lies only the call. The write of `FLUSH` bytes before it empties the cache and keeps the
device busy while the host enqueues, so that small operators are timed by what the GPU does and not by Python.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.cases import Case, Outputs, Work, differentiate, ones_for

FLUSH = 1 << 30
ROUNDS, WARMUP = 15, 3
EXECUTORS = ("eager", "compile", "compile-max", "triton", "cuda")

Row = dict[str, Any]


class Timer:
    """Median seconds of a call on the current device."""

    def __init__(self) -> None:
        self.flush = torch.empty(FLUSH, dtype=torch.int8, device="cuda")

    def __call__(self, call: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        seconds = []
        for index in range(WARMUP + ROUNDS):
            before()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            if index >= WARMUP:
                seconds.append(start.elapsed_time(end) / 1e3)
        return statistics.median(seconds)


def ceilings(timer: Timer) -> dict[str, float]:
    """GB/s of a 4 GB copy (bytes read and written), TFLOP/s of a bf16 matrix product, seconds of an empty launch."""
    source = torch.rand(1 << 29, device="cuda")
    target = torch.empty_like(source)
    copy = timer(lambda: target.copy_(source))
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
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
    if name == "compile":
        return torch.compile(work.reference, fullgraph=True, dynamic=False)
    if name == "compile-max":
        mode = "max-autotune-no-cudagraphs"
        return torch.compile(work.reference, fullgraph=True, dynamic=False, mode=mode)
    return work.ours(name)


def measure(case: Case, names: tuple[str, ...], timer: Timer) -> Iterator[tuple[str, float | str, int]]:
    """(executor, median seconds or the error's first line, peak bytes of memory beyond the inputs) of one case."""
    with torch.device("cuda"):
        work = case.make()
    for name in names:
        torch._dynamo.reset()
        gc.collect()
        torch.cuda.empty_cache()
        try:
            run = executor(work, name)
            inputs = work.leaves(case.direction != "forward")

            with torch.set_grad_enabled(case.direction != "forward"), torch.device("cuda"):
                incoming = ones_for(run(*inputs))  # compiles

                def call(
                    run: Callable[..., Outputs] = run,
                    inputs: list[torch.Tensor] = inputs,
                    incoming: list[torch.Tensor] = incoming,
                ) -> object:
                    outputs = run(*inputs)
                    return (
                        outputs if case.direction == "forward" else differentiate(outputs, inputs, incoming)
                    )

                call()  # compiles backward
                torch.cuda.synchronize()
                held = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                call()
                peak = torch.cuda.max_memory_allocated() - held
                yield name, timer(call), peak
        except Exception as error:
            yield (
                name,
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}",
                0,
            )


def run(cases: list[Case], time_left: Callable[[], float], log: Callable[[str], None]) -> Row:
    """Ceilings and one row a case; what there was no time for is left out."""
    timer = Timer()
    result: Row = {"ceilings": ceilings(timer), "rows": []}
    for case in cases:
        if time_left() <= 0:
            log(f"no time left: {case.name} and what follows is not measured")
            break
        row: Row = {
            "operator": case.operator, "direction": case.direction, "size": case.size,
            "dtype": str(case.dtype).removeprefix("torch."), "seconds": {}, "peak": {}, "errors": {},
        }  # fmt: skip
        with torch.device("meta"):
            row["bytes"] = case.make().traffic(case.direction)
        for name, seconds, peak in measure(case, EXECUTORS, timer):
            if isinstance(seconds, str):
                row["errors"][name] = seconds
                log(f"{case.name} {name}: {seconds}")
            else:
                row["seconds"][name], row["peak"][name] = seconds, peak
        result["rows"].append(row)
        log(line(row, result["ceilings"]))
    result["model"] = whole_model(timer) if time_left() > 0 else {}
    return result


def best(row: Row) -> str | None:
    """The faster of our two backends, or None where neither ran."""
    ours = {name: row["seconds"][name] for name in ("triton", "cuda") if name in row["seconds"]}
    return min(ours, key=lambda name: ours[name]) if ours else None


def line(row: Row, ceiling: dict[str, float]) -> str:
    times = " ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in row["seconds"].items())
    name = best(row)
    share = (
        ""
        if name is None
        else f" {row['bytes'] / row['seconds'][name] / 1e9 / ceiling['copy_gbps']:.0%} of copy"
    )
    return f"{row['operator']} {row['direction']} {row['dtype']} {row['size']}: {times} µs{share}"


def whole_model(timer: Timer) -> Row:
    """The whole reward beside its bare encoder: ViT-L/14, 448², batch 16, bf16, compiled; random weights.

    `modulate` is a fusion barrier in a compiled model, so the head is measured with the operator and with the
    reference in its place.
    """
    from transformers import CLIPVisionConfig

    from finpercep import RewardModel, ops
    from finpercep.models import head

    config = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, patch_size=14,
                              num_attention_heads=16, image_size=224, projection_dim=768).to_dict()  # fmt: skip
    encoder = {
        "type": "vit",
        "config": {"model_type": "clip_vision_model", **config},
        "taps": [6, 12, 18, 24],
    }
    model = RewardModel(encoder, {"width": "light"}).eval().to("cuda", torch.bfloat16)
    images = torch.rand(16, 3, 448, 448, device="cuda", dtype=torch.bfloat16)
    seconds: Row = {}
    operator = head.ops
    with torch.no_grad():
        for name, function in (
            ("encoder", model.encoder),
            ("reward, operator", model),
            ("reward, reference", model),
        ):
            torch._dynamo.reset()
            if name.endswith("reference"):
                head.ops = _Reference  # type: ignore[assignment]
            try:
                seconds[name] = timer(partial(torch.compile(function, dynamic=False), images))
            finally:
                head.ops = operator
    assert ops is operator
    return seconds


class _Reference:
    """Stands for `finpercep.ops` in the head."""

    from finpercep.ops import modulate_reference as modulate
