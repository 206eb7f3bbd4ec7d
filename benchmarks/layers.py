"""`python -m benchmarks.layers [MODEL …] [--seconds 6]`: models with the kernels of their layers, and without.

The kernels take several of PyTorch's operators at once on a CPU (`finpercep.models.cpu_kernels`). Both ways take turns
on the same photo, scored alone, and scored with a gradient to its pixels; the ratio is the median over turns, so that a
machine's slow seconds do not count. Writes `benchmarks/results/layers.json` and `.md`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.report import device_name, write_results
from finpercep import RewardModel
from finpercep.models import cpu_kernels

MODELS = ("finpercep-tiny", "finpercep-small", "finpercep-small/2")
SIDES = (128, 256, 512)
LEAST = 5


@contextmanager
def pytorch_layers() -> Iterator[None]:
    """Inside, every layer is made of PyTorch's operators."""
    has_cpp = cpu_kernels.has_cpp
    cpu_kernels.has_cpp = lambda operator: False
    try:
        yield
    finally:
        cpu_kernels.has_cpp = has_cpp


def call(model: RewardModel, photo: torch.Tensor, gradient: bool) -> tuple[torch.Tensor, float]:
    """The score, and the seconds that it took."""
    pixels, start = photo.clone().requires_grad_(gradient), time.perf_counter()
    with torch.set_grad_enabled(gradient):
        score = model(pixels).score
        if gradient:
            score.sum().backward()
    return score.detach(), time.perf_counter() - start


def measure(model: RewardModel, photo: torch.Tensor, gradient: bool, seconds: float) -> dict[str, Any]:
    """Seconds of both ways, turn by turn, and how far their scores are apart."""
    turns: list[tuple[float, float]] = []
    until = time.perf_counter() + seconds
    while len(turns) <= LEAST or time.perf_counter() < until:
        with pytorch_layers():
            plain, before = call(model, photo, gradient)
        ours, after = call(model, photo, gradient)
        turns.append((before, after))
    before_s, after_s = zip(*turns[1:], strict=True)
    ratios = [a / b for a, b in turns[1:]]
    return {
        "pytorch_ms": 1e3 * statistics.median(before_s),
        "kernels_ms": 1e3 * statistics.median(after_s),
        "times": statistics.median(ratios),
        "times_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "turns": len(ratios),
        "score_difference": (plain - ours).abs().max().item(),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{device_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads; medians and quartiles.",
        "",
        "| model | size | | PyTorch's layers | kernels | times as fast |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        low, high = row["times_quartiles"]
        lines.append(
            f"| {row['model']} | {row['side']}² | {'score and gradient' if row['gradient'] else 'score'} "
            f"| {row['pytorch_ms']:.1f} ms | {row['kernels_ms']:.1f} ms | {row['times']:.2f} ({low:.2f}–{high:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each cell")
    args = parser.parse_args(words)
    from skimage import data

    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].contiguous().float() / 255
    rows = []
    for name in args.models:
        model = RewardModel.from_pretrained(name).eval().requires_grad_(False)
        for side in SIDES:
            for gradient in (False, True):
                part = photo[..., :side, :side].contiguous()
                rows.append(
                    {"model": name, "side": side, "gradient": gradient, **measure(model, part, gradient, args.seconds)}
                )
    text = markdown(rows)
    print(text)
    write_results("layers", rows, text)


if __name__ == "__main__":
    main()
