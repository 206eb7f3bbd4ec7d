"""`python -m benchmarks.engine [MODEL …] [--images 500]`: a folder of mixed sizes, by the engine and by a loop.

The loop is `for path in paths: model.score([path])`, the engine `Scorer(model).score(paths)`. Both take turns on the
same part of the folder, and the ratio is the median over parts, so that a machine's slow seconds do not count. Also
the loop without the kernels of the model's layers, what deterministic mode costs, and the share of decoding. Writes
`benchmarks/results/engine.json` and `.md`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.layers import pytorch_layers
from benchmarks.report import device_name, write_results
from finpercep import RewardModel, Scorer
from finpercep.io.images import load_image

SIDES = (
    *((128, 128), (160, 240), (192, 192), (256, 256), (240, 320), (320, 320)),
    *((320, 480), (384, 384), (384, 512), (448, 448), (512, 512), (333, 401)),
)
FORMATS: tuple[tuple[str, dict[str, Any]], ...] = (("png", {}), ("jpg", {"quality": 95}), ("webp", {"lossless": True}))
PART = 40
PYTORCH = "loop, PyTorch's layers"


def write_folder(folder: Path, count: int) -> list[Path]:
    """Crops of scikit-image's photos, resized: files of mixed sizes and formats, the same every time."""
    from skimage import data

    sources = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee")]
    draw = random.Random(0)
    paths = []
    for number in range(count):
        photo, size = draw.choice(sources), draw.choice(SIDES)
        side = draw.randint(min(photo.size) // 2, min(photo.size))
        left, top = (draw.randint(0, length - side) for length in photo.size)
        suffix, options = draw.choice(FORMATS)
        paths.append(folder / f"{number:03}.{suffix}")
        photo.crop((left, top, left + side, top + side)).resize(size, Image.Resampling.BICUBIC).save(
            paths[-1], **options
        )
    return paths


def measure(name: str, paths: Sequence[Path]) -> dict[str, Any]:
    """Seconds of each route for each part of the folder, in turns."""
    model = RewardModel.from_pretrained(name).requires_grad_(False)
    engine, same_bits = Scorer(model), Scorer(model, deterministic=True)

    def loop(part: Sequence[Path]) -> None:
        for path in part:
            model.score([path])

    def loop_on_pytorch(part: Sequence[Path]) -> None:
        with pytorch_layers():
            loop(part)

    def decode(part: Sequence[Path]) -> None:
        for path in part:
            load_image(path)

    routes: dict[str, Callable[[Sequence[Path]], object]] = {
        "loop": loop,
        PYTORCH: loop_on_pytorch,
        "engine": engine.score,
        "deterministic": same_bits.score,
        "decoding alone": decode,
    }
    seconds: dict[str, list[float]] = {route: [] for route in routes}
    cores: dict[str, list[float]] = {route: [] for route in routes}
    for call in routes.values():
        call(paths[:4])
    for start in range(0, len(paths), PART):
        for route, call in routes.items():
            began, worked = time.perf_counter(), time.process_time()
            call(paths[start : start + PART])
            seconds[route].append(time.perf_counter() - began)
            cores[route].append(time.process_time() - worked)
    row: dict[str, Any] = {"model": name, "images": len(paths)}
    for route in routes:
        ratios = [a / b for a, b in zip(seconds["loop"], seconds[route], strict=True)]
        row[route] = {
            "ms": 1e3 * sum(seconds[route]) / len(paths),
            "core_ms": 1e3 * sum(cores[route]) / len(paths),
            "times": statistics.median(ratios),
            "times_quartiles": statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else ratios * 2,
        }
    return row


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{device_name()}, torch {torch.__version__}; medians over parts of {PART} images, quartiles in brackets.",
        "",
        "| model | images | route | ms per image | of all cores | times the loop |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        for route in ("loop", PYTORCH, "engine", "deterministic", "decoding alone"):
            low, high = row[route]["times_quartiles"]
            lines.append(
                f"| {row['model']} | {row['images']} | {route} | {row[route]['ms']:.1f} | {row[route]['core_ms']:.1f} "
                f"| {row[route]['times']:.2f} ({low:.2f}–{high:.2f}) |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=["finpercep-tiny", "finpercep-small"])
    parser.add_argument("--images", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_folder(Path(folder), arguments.images)
        rows = [measure(name, paths) for name in arguments.models]
    text = markdown(rows)
    print(text)
    write_results("engine", rows, text)


if __name__ == "__main__":
    main()
