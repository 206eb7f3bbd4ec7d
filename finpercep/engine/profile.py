"""What a reward model's time is made of: stages, ceilings of the machine, percentiles, memory."""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from finpercep.io.images import to_tensor
from finpercep.models.inputs import STORED_PREPROCESSING, as_stored
from finpercep.models.reward_model import RewardModel
from finpercep.models.scoring import as_float
from finpercep.models.tiles import pad_to_multiple
from finpercep.runs.machine import device_name, package_version

__all__ = ["STAGES", "Ceilings", "Stage", "Timing", "measure_ceilings", "profile_model", "stages_of", "timing"]

STAGES = ("load", "preprocess", "encoder", "decoder", "modulate", "head", "copy back")
COPY_BYTES = 1 << 27
FOR_P99 = 100
"""Calls below which there is no p99: that of fewer is about their slowest."""


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do, measured now: bytes that a copy reads and writes, and FLOPs of a matrix product."""

    copy_gbps: float
    matmul_gflops: float


@dataclass(frozen=True)
class Stage:
    """One stage of a batch: its seconds (median), what it has to move and compute, and its share of a ceiling.

    `share` is that of the nearer ceiling, the greater of both shares; of "load", which decodes a PNG, there is none.
    """

    name: str
    seconds: float
    bytes: int
    flops: int
    share: float | None
    part: float


@dataclass(frozen=True)
class Timing:
    """The whole for one batch, size and type: percentiles of seconds, images per second, first call, peak bytes.

    `p99` is None of fewer than `FOR_P99` calls.
    """

    batch: int
    height: int
    width: int
    dtype: str
    compile: str | None
    first_call: float
    p50: float
    p95: float
    p99: float | None
    images_per_second: float
    peak_bytes: int | None
    stages: list[Stage] = field(default_factory=list)


def measure_ceilings(device: torch.device, dtype: torch.dtype, rounds: int = 7) -> Ceilings:
    """A large copy and a large matrix product, medians.

    Of half precision on a CPU the product is that of float32 where this is faster: what a ceiling is, is not what the
    processor lacks.
    """
    large = device.type == "cuda"
    source = torch.zeros(COPY_BYTES * (8 if large else 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 8192 if large else 1024
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    copy = statistics.median(seconds_of(lambda: target.copy_(source), device, rounds))
    product = statistics.median(seconds_of(lambda: a @ b, device, 1 if dtype.itemsize < 4 and not large else rounds, 0))
    if dtype.itemsize < 4 and not large:
        a, b = a.float(), b.float()
        product = min(product, statistics.median(seconds_of(lambda: a @ b, device, rounds)))
    return Ceilings(2 * source.numel() / copy / 1e9, 2 * side**3 / product / 1e9)


def seconds_of(call: Callable[[], object], device: torch.device, rounds: int, warmup: int = 2) -> list[float]:
    """Seconds of each of some calls, each of which is waited for."""
    found = []
    for _ in range(warmup + rounds):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        found.append(time.perf_counter() - started)
    return found[warmup:]


def wait(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def stages_of(model: RewardModel, images: Tensor, ceilings: Ceilings, rounds: int) -> list[Stage]:
    """The stages of a uint8 batch (B,3,H,W) on the CPU, one after the other, each from what the last one gave."""
    place = next(model.parameters())
    device, size = place.device, (images.shape[-2], images.shape[-1])
    files = [_png(image) for image in images]
    decoder = model.decoder
    found: list[tuple[str, list[float], int, int]] = []

    def stage(name: str, call: Callable[[], Any], *inputs: Any, weights: Any = None) -> Any:
        with FlopCounterMode(display=False) as flops:
            result = call()
        moved = _bytes(inputs) + _bytes(result) + _bytes(list(weights.parameters()) if weights is not None else ())
        with torch.profiler.record_function(name):
            found.append((name, seconds_of(call, device, rounds), moved, flops.get_total_flops()))
        return result

    def preprocess() -> Tensor:
        padded = pad_to_multiple(as_float(images.to(device), place.dtype), model.encoder.stride)
        return as_stored(padded) if model.preprocessing == STORED_PREPROCESSING else padded

    stage("load", lambda: [to_tensor(file) for file in (_open(f) for f in files)])
    pixels = stage("preprocess", preprocess, images)
    features = stage("encoder", lambda: model.encoder(pixels), pixels, weights=model.encoder)
    whole = (pixels.shape[-2], pixels.shape[-1])
    degradation = None
    if decoder is not None:
        degradation = stage("decoder", lambda: decoder(features, whole), features, weights=decoder)
    pooled = stage("modulate", lambda: model.head.pool(features[-1], degradation), features[-1], degradation)
    score = stage("head", lambda: model.head.regress(pooled), pooled, weights=model.head)
    answers = [score] if degradation is None else [score, degradation[..., : size[0], : size[1]]]
    stage("copy back", lambda: [x.to("cpu", torch.float32, copy=True) for x in answers], answers)
    total = sum(statistics.median(seconds) for name, seconds, _, _ in found)
    return [_stage(name, statistics.median(s), moved, flops, ceilings, total) for name, s, moved, flops in found]


def _stage(name: str, seconds: float, moved: int, flops: int, ceilings: Ceilings, total: float) -> Stage:
    by_bytes = moved / seconds / 1e9 / ceilings.copy_gbps
    by_flops = flops / seconds / 1e9 / ceilings.matmul_gflops
    share = None if name == "load" else max(by_bytes, by_flops)
    return Stage(name, seconds, 0 if name == "load" else moved, flops, share, seconds / total)


@torch.no_grad()
def timing(
    model: RewardModel, batch: int, height: int, width: int, *, compile: str | None, rounds: int, ceilings: Ceilings
) -> Timing:
    """Percentiles of score and map of a batch that is on the device, and its stages."""
    place = next(model.head.parameters())
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=draw)
    floats = as_float(images.to(place.device), place.dtype)
    call: Any = model
    if compile is not None:
        call = torch.compile(model, dynamic=True, mode=None if compile == "default" else compile)
    started = time.perf_counter()
    call(floats)
    wait(place.device)
    first = time.perf_counter() - started
    with _peak(place.device) as peak:
        seconds = sorted(seconds_of(lambda: call(floats), place.device, rounds))
    p50, p95 = (percentile(seconds, p) for p in (0.5, 0.95))
    p99 = percentile(seconds, 0.99) if rounds >= FOR_P99 else None
    return Timing(
        batch, height, width, str(place.dtype)[6:], compile, first, p50, p95, p99, batch / p50, peak[0],
        stages_of(model, images, ceilings, min(rounds, 10)),
    )  # fmt: skip


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the ordered values do not pass, between two of them by their distance."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def profile_model(
    model: RewardModel,
    name: str,
    *,
    batches: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    dtypes: Sequence[torch.dtype],
    compile: str | None = None,
    rounds: int = 20,
) -> dict[str, Any]:
    """All combinations of batch, size and type, with ceilings of the same run: what the report shows."""
    import copy

    place = next(model.parameters()).device
    rows, ceilings = [], {}
    for dtype in dtypes:
        changed = copy.deepcopy(model).to(dtype)
        limit = ceilings[str(dtype)[6:]] = measure_ceilings(place, dtype)
        for height, width in sizes:
            for batch in batches:
                rows.append(timing(changed, batch, height, width, compile=compile, rounds=rounds, ceilings=limit))
    return {
        "model": name,
        "fingerprint": model.fingerprint,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else device_name(),
        "torch": package_version("torch"),
        "rounds": rounds,
        "ceilings": {dtype: asdict(limit) for dtype, limit in ceilings.items()},
        "timings": [asdict(row) for row in rows],
    }


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(_bytes(v) for v in value) if isinstance(value, (list, tuple)) else 0


def _png(image: Tensor) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


def _open(file: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(file))


@contextmanager
def _peak(device: torch.device) -> Iterator[list[int | None]]:
    """Most bytes in use inside: of the GPU's allocator, or of the process where Linux says so."""
    found: list[int | None] = [None]
    status = Path("/proc/self/status")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
        except OSError:
            status = Path()
    yield found
    if device.type == "cuda":
        found[0] = torch.cuda.max_memory_allocated(device)
    elif status.is_file():
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        found[0] = 1024 * int(lines[0].split()[1]) if lines else None
