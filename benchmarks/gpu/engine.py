"""`python -m benchmarks.gpu.engine <results> <seconds>`: the scoring engine on the GPU, each check by itself.

Each check gives figures and whether they hold; the results are written after every one, and one that fails or has no
time left is noted as such and the next goes on. On a CPU (`device="cpu"`) those that need a GPU are left out.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import benchmarks.gpu  # noqa: F401  (finds finpercep.kernels in a tree that nobody installed)
from benchmarks.gpu import loops, report
from benchmarks.gpu.measure import AGAIN, UNFINISHED, watched
from finpercep import RewardModel, Scorer
from finpercep.models.attention import ATTENTION
from finpercep.runs.devices import take_full_float32

MODEL = "finpercep-tiny"
SIZES = ((256, 256), (384, 512), (512, 512), (200, 328))
COUNT = 24
TOLERANCE = 1e-4  # of scores against the CPU, float32 without TF32
GRAPH_BAR, SHARE_BAR = 1.2, 0.55
ATTENTION_TOLERANCE = 5e-3  # of maps, fp16
CALLS = 50
COMPILED_SIZES = ((256, 320), (384, 512))  # of one kind: squares, and sides that are padded, are compiled anew
LONGEST, LONGEST_COMPILED = 60.0, 150.0  # seconds of a check
TIME_UP = 76  # the status of a process whose time was up in the middle of a check, which is no failure
NOT_REACHED = "not reached"

Check = Callable[[str], dict[str, Any]]


@cache
def model() -> RewardModel:
    return RewardModel.from_pretrained(MODEL).requires_grad_(False)


def photos(count: int, sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Tensor]:
    """uint8 (3,H,W) of mixed sizes: smooth light with grain, the same every time."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        light = torch.rand(1, 3, 5, 5, generator=generator)
        light = torch.nn.functional.interpolate(light, (height, width), mode="bicubic")[0]
        found.append(((light + 0.1 * torch.rand(3, height, width, generator=generator)).clamp(0, 1) * 255).byte())
    return found


@cache
def expected(*given: Any) -> Tensor:
    """Scores of `photos(*given)` by the CPU."""
    return Scorer(model()).score(photos(*given)).score


def values(device: str, sizes: tuple[tuple[int, int], ...] | None = None, **options: Any) -> dict[str, Any]:
    """Mixed sizes in the caller's order, from the host, by four threads at once: as the CPU gives them."""
    given = (COUNT, sizes) if sizes else (COUNT,)
    scorer, images = Scorer(model(), device=device, batch_size=4, **options), photos(*given)
    found: list[Tensor] = [torch.empty(0)] * 4
    scorer.score(images[:1])  # what is compiled or chosen on first use is, before threads meet

    def score(number: int) -> None:
        found[number] = scorer.score(images).score

    threads = [threading.Thread(target=score, args=(number,)) for number in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    scorer.close()
    worst = max(float((one - expected(*given)).abs().max()) for one in found)
    return {"largest difference": worst, "ok": worst < TOLERANCE}


def half_precision(device: str) -> dict[str, Any]:
    scorer = Scorer(model(), device=device, dtype="bf16")
    worst = float((scorer.score(photos(COUNT)).score - expected(COUNT)).abs().max())
    scorer.close()
    return {"largest difference": worst, "ok": worst < 0.02}


def deterministic(device: str) -> dict[str, Any]:
    """The same bits alone, among others, and in another order."""
    scorer, images = Scorer(model(), device=device, deterministic=True, batch_size=4), photos(8)
    together, backwards = scorer.score(images).score, scorer.score(images[::-1]).score.flip(0)
    alone = torch.cat([scorer.score([image]).score for image in images])
    scorer.close()
    return {"ok": torch.equal(together, backwards) and torch.equal(together, alone)}


def still_in_the_making(device: str) -> dict[str, Any]:
    """Images that the caller's stream is late with: read too early, they would be other images."""
    scorer, images = Scorer(model(), device=device, batch_size=4), photos(8, ((256, 256),))
    reference = scorer.score(images).score
    stream = torch.cuda.Stream()
    worst = 0.0
    with torch.cuda.stream(stream):
        batch = torch.zeros(8, 3, 256, 256, device=device)
        source = torch.stack(images).to(device).float() / 255
        for given in (batch, batch.permute(0, 2, 3, 1)):  # the latter is no batch of floats, channels first
            batch.zero_()
            torch.cuda._sleep(50_000_000)
            batch.copy_(source)
            late = (given * 255).round().byte() if given is not batch else given
            worst = max(worst, float((scorer.score_async(late).result().score - reference).abs().max()))

        def made() -> Iterator[Tensor]:  # each begun when the stream that scores it runs already
            for image in source:
                one = torch.zeros_like(image)
                torch.cuda._sleep(50_000_000)
                yield one.copy_(image)

        for number, outcome in enumerate(scorer.stream(made())):
            worst = max(worst, float((outcome.score - reference[number]).abs()))
    scorer.close()
    return {"largest difference": worst, "ok": worst < TOLERANCE}


def no_synchronization(device: str) -> dict[str, Any]:
    """Torch raises where the host would wait for the device."""
    batch = torch.stack(photos(4, ((256, 256),))).to(device)
    found = {}
    for name, options in {"eager": {}, "graphs": {"graphs": True}, "bf16": {"dtype": "bf16"}}.items():
        scorer = Scorer(model(), device=device, **options)  # type: ignore[arg-type]
        for _ in range(3):
            scorer(batch)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            scorer(batch)
            found[name] = "none"
        except RuntimeError as error:
            found[name] = str(error).splitlines()[0][:120]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {**found, "ok": set(found.values()) == {"none"}}


def graph_latency(device: str) -> dict[str, Any]:
    """One 512 × 512 image by a graph, from uint8 on the device: median call beside the time of its kernels alone."""
    scorer = Scorer(model(), device=device, graphs=True)
    image = torch.stack(photos(1, ((512, 512),))).to(device)
    call = partial(scorer, image)
    p50, p99 = timed(call)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(10):
            call()
        torch.cuda.synchronize()
    kernels = sum(event.self_device_time_total for event in profile.key_averages()) / 10 / 1e6
    ratio = p50 / kernels if kernels else float("inf")
    return {
        "p50 ms": 1e3 * p50,
        "p99 ms": 1e3 * p99,
        "kernels ms": 1e3 * kernels,
        "ratio": ratio,
        "ok": ratio <= GRAPH_BAR,
    }


def large_model(device: str) -> dict[str, Any]:
    """ViT-L/14, 448², batch 16, bf16, uint8 on the device, compiled, replayed as a graph: share of a matrix product.

    End to end: uint8 to float, padding, decoder, head and copies of the answer count as time.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.gpu.model import reward

    vit, _ = reward(device)
    batch = torch.randint(0, 256, (16, 3, 448, 448), dtype=torch.uint8, device=device)
    plain, graphs = Scorer(vit), Scorer(vit, compile="default", graphs=True)
    with FlopCounterMode(display=False) as counter:
        plain(batch)
    p50, _ = timed(partial(graphs, batch), 15)
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    product, _ = timed(lambda: a @ b, 15)
    share = counter.get_total_flops() / p50 / (2 * 8192**3 / product)
    return {"p50 ms": 1e3 * p50, "share of a matrix product": share, "ok": share >= SHARE_BAR}


def attention(device: str, layers: int = 4, side: int = 448, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    """A small vision transformer by every attention that is installed: the maps of "sdpa", and how long each takes."""
    from transformers import CLIPVisionConfig

    take_full_float32(device)  # the models are called without a Scorer
    sizes: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "patch_size": 14}
    config = CLIPVisionConfig(**sizes, num_hidden_layers=layers, image_size=224).to_dict()
    images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    found: dict[str, Any] = {}
    first, worst = None, 0.0
    for name in ATTENTION:
        encoder = {
            "type": "vit",
            "config": {"model_type": "clip_vision_model", **config},
            "taps": [layers // 2, layers],
        }
        torch.manual_seed(0)
        try:
            vit = RewardModel({**encoder, "attn_implementation": name}, {"width": "light"}).eval().to(device, dtype)
        except ImportError:
            found[name] = "not installed"
            continue
        with torch.no_grad():
            output = vit(images)
            found[f"{name} ms"] = 1e3 * timed(partial(vit, images), 15)[0]
        first = output.map.float() if first is None else first
        worst = max(worst, float((output.map.float() - first).abs().max()))
    return {**found, "largest difference": worst, "ok": worst < ATTENTION_TOLERANCE}


def overlap(device: str) -> dict[str, Any]:
    """256 images from the host: which part of the copies runs while kernels do. No bar: the host may be slower."""
    scorer, images = Scorer(model(), device=device, batch_size=16), photos(256, ((512, 512),))
    scorer.score(images[:64])
    began = time.perf_counter()
    scorer.score(images)
    seconds = time.perf_counter() - began
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        scorer.score(images)
    scorer.close()
    spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spans["Memcpy HtoD" in event.name or "Memcpy DtoH" in event.name].append(
                (event.time_range.start, event.time_range.end)
            )
    hidden, whole = covered(spans[True], spans[False]), sum(end - start for start, end in spans[True])
    return {
        "images per second": len(images) / seconds,
        "copies hidden": hidden / whole if whole else 0.0,
        "ok": whole > 0,
    }


def covered(spans: list[tuple[float, float]], by: list[tuple[float, float]]) -> float:
    """The length of `spans` that lies inside of some of `by`."""
    merged: list[list[float]] = []
    for start, end in sorted(by):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return sum(max(0.0, min(end, stop) - max(start, begin)) for start, end in spans for begin, stop in merged)


def timed(call: Callable[[], object], calls: int = CALLS) -> tuple[float, float]:
    """Median and 99th percentile of calls that are waited for, in seconds."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    seconds = []
    for _ in range(5 + calls):
        wait()
        began = time.perf_counter()
        call()
        wait()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[5:]), sorted(seconds[5:])[int(0.99 * calls)]


ANYWHERE: dict[str, Check] = {
    "values": values,
    "values, deterministic": partial(values, deterministic=True),
    "same bits": deterministic,
    "bf16": half_precision,
    **{f"train-rl, {name}": partial(loops.reinforce, algorithm=name) for name in loops.ALGORITHMS},
    "train-reward, bf16": loops.reward_model,
}
ON_A_GPU: dict[str, Check] = {
    "values, graphs": partial(values, graphs=True),
    "values, compiled": partial(values, sizes=COMPILED_SIZES, compile="default"),
    "images still in the making": still_in_the_making,
    "host synchronizations": no_synchronization,
    "graph at batch 1": graph_latency,
    "ViT-L/14, batch 16, compiled": large_model,
    "copies and kernels": overlap,
    "attention": attention,
}


def checks(device: str) -> dict[str, Check]:
    """Compiling takes longest, and goes last."""
    found = {**ANYWHERE, **(ON_A_GPU if device == "cuda" else {})}
    return dict(sorted(found.items(), key=lambda item: "compiled" in item[0]))


def main(path: Path, seconds: float, device: str = "cuda", *, again: bool = False) -> bool:
    """Whether every check held that there was time for.

    Args:
        again: go on behind the check that ended the process before, by hanging or by leaving the GPU unusable.
    """
    end = time.monotonic() + seconds
    result = report.load(path)
    if not again:
        result["engine"] = {name: {"error": NOT_REACHED} for name in checks(device)}
    rows = result["engine"]
    for name, check in checks(device).items():
        if time.monotonic() >= end:
            break
        if rows[name].get("error") != NOT_REACHED:
            continue
        rows[name] = {"ok": False, "error": UNFINISHED}
        report.write(result, path)
        try:
            with watched(*_limit(name, end - time.monotonic(), partial(_time_is_up, result, name, path))):
                rows[name] = check(device)
        except Exception as error:
            rows[name] = {"ok": False, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        report.write(result, path)
        print(f"{name}: {report.figures(rows[name])}", flush=True)
        if device == "cuda" and torch.cuda.is_available() and not _is_usable():
            raise SystemExit(AGAIN)
    report.write(result, path)
    failed = [name for name, row in rows.items() if row.get("ok") is False]
    print(f"{len(rows) - len(failed)} of {len(rows)} hold{': not ' + ', '.join(failed) if failed else ''}", flush=True)
    return not failed


def _limit(name: str, left: float, time_is_up: Callable[[], object]) -> tuple[Any, ...]:
    """What `watched` takes: a check's own limit, at which it has failed, or the end of the time for all, if earlier."""
    longest = LONGEST_COMPILED if "compiled" in name else LONGEST
    return (longest,) if longest <= left else (max(1.0, left), time_is_up)


def _time_is_up(result: report.Row, name: str, path: Path) -> None:
    """Note that a check was cut, neither held nor failed, and end the process."""
    result["engine"][name] = {"error": UNFINISHED}
    report.write(result, path)
    os._exit(TIME_UP)


def _is_usable() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(not main(Path(sys.argv[1]), float(sys.argv[2]), again="again" in sys.argv[3:]))
