"""`python -m benchmarks.latency [MODEL …] [--seconds 20]`: how long one call takes, in matrix products.

`Scorer.score` of a batch, uint8 in memory to score and map in memory, for each preset, batch and size. A call is
divided by a matrix product that ran just before it (float32 of side 2048 on a CPU; bf16 of side 8192 on a GPU, where
the models are bf16 too), so that the figures hold on other machines, and a machine's slow seconds do not count. p50 and
p99 are those of the quotients; p99 stays empty below 100 calls, and so does a cell whose calls are too long. Vision
transformers have random weights. Writes `benchmarks/results/latency.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import benchmarks.gpu  # noqa: F401  (finds finpercep.kernels in a tree that nobody installed)
from benchmarks.report import RESULTS, device_name
from finpercep import RewardModel, Scorer
from finpercep.io.files import atomic_write
from finpercep.models.presets import PRESETS

BATCHES = (1, 4, 16)
SIDES = {"conv": (256, 512, 1024), "vit": (224, 448)}
LEAST, MOST, FOR_P99 = 5, 300, 100
WIDTHS: dict[str, dict[str, Any]] = {
    "finpercep-vit-b-16": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "finpercep-vit-l-14": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16},
}
MODELS = ("finpercep-tiny", "finpercep-small", *PRESETS)


def model_of(name: str) -> RewardModel:
    """With its weights, or around a public checkpoint with random ones of the same sizes."""
    if name not in PRESETS:
        return RewardModel.from_pretrained(name).requires_grad_(False)
    from transformers import CLIPVisionConfig

    preset = PRESETS[name]
    options = {**WIDTHS[name], "patch_size": preset.patch_size, "num_hidden_layers": preset.taps[-1], "image_size": 224}
    config = {"model_type": "clip_vision_model", **CLIPVisionConfig(**options).to_dict()}
    encoder = {"type": "vit", "config": config, "taps": list(preset.taps)}
    return RewardModel(encoder, {"width": "light"}).eval().requires_grad_(False)


def matrix_product(device: str) -> Callable[[], object]:
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()

    return product


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def cell(call: Callable[[], object], product: Callable[[], object], seconds: float) -> dict[str, Any]:
    """Quotients of some calls, as many as fit into `seconds`; nothing where a few do not."""
    first = min(seconds_of(call) for _ in range(2))
    if first * LEAST > seconds:
        return {"calls": 0}
    quotients: list[float] = []
    times: list[float] = []
    products: list[float] = []
    end = time.perf_counter() + seconds
    while len(quotients) < LEAST or (time.perf_counter() < end and len(quotients) < MOST):
        products.append(seconds_of(product))
        times.append(seconds_of(call))
        quotients.append(times[-1] / products[-1])
    ordered = sorted(quotients)
    return {
        "calls": len(quotients),
        "p50": statistics.median(quotients),
        "p99": ordered[int(0.99 * len(ordered))] if len(ordered) >= FOR_P99 else None,
        "ms": 1e3 * statistics.median(times),
        "product_ms": 1e3 * statistics.median(products),
    }


def measure(name: str, device: str, seconds: float) -> list[dict[str, Any]]:
    model, product = model_of(name), matrix_product(device)
    scorer = Scorer(model, device=device, dtype="bf16" if device == "cuda" else None)
    rows = []
    for side in SIDES["vit" if name in PRESETS else "conv"]:
        for batch in BATCHES:
            images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
            found = cell(partial(scorer.score, images), product, seconds)
            rows.append({"model": name, "batch": batch, "side": side, **found})
            print(json.dumps(rows[-1]), flush=True)
    scorer.close()
    return rows


def markdown(found: dict[str, Any]) -> str:
    products = [row["product_ms"] for row in found["rows"] if row["calls"]]
    middle = f"{statistics.median(products):.1f} ms" if products else "not measured"
    machine = f"{found['device']}, torch {found['torch']}, {found['dtype']}"
    lines = [
        f"{machine}; the matrix product, {found['product']}: {middle}.",
        "",
        "| model | size | batch | p50, matrix products | p99 | p50 here |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        figures = [f"{row[name]:.3g}" if row.get(name) else "" for name in ("p50", "p99")]
        here = f"{row['ms']:.4g} ms" if row["calls"] else ""
        lines.append(f"| {row['model']} | {row['side']}² | {row['batch']} | {figures[0]} | {figures[1]} | {here} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of each cell; a cell with longer calls stays empty"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "latency.json")
    given = parser.parse_args(arguments)
    gpu = torch.cuda.is_available()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if gpu else device_name(),
        "torch": torch.__version__,
        "dtype": "bf16" if gpu else "fp32",
        "product": "8192³, bf16" if gpu else "2048³, fp32",
        "rows": [],
    }
    for name in given.models:
        found["rows"] += measure(name, "cuda" if gpu else "cpu", given.seconds)
        texts = {given.out: json.dumps(found, indent=1) + "\n", given.out.with_suffix(".md"): markdown(found)}
        for path, text in texts.items():
            with atomic_write(path) as file:
                file.write(text.encode())
    print(markdown(found))


if __name__ == "__main__":
    main()
