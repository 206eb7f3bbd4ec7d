"""``python -m benchmarks.data_throughput PHOTOS``: how fast data sets are made.

In one run, what is compared taking turns, medians of the repeats:

1. degradations of a batch, beside the same per photo by NumPy and OpenCV, in as many processes as there are cores;
2. the stage "target" of the generator (a photo, its results and samples), by the compiled operator and plain PyTorch;
3. a small data set from start to end: seconds and images of each stage.

PHOTOS is a folder or pattern of photos (see `finpercep.data.dataset.pairs.find_images`). Writes
`benchmarks/results/data_throughput.json` and `.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.opencv_degradations import Pool, plain
from benchmarks.report import RESULTS, device_name
from finpercep import ops
from finpercep.data.dataset.config import MakeConfig
from finpercep.data.dataset.make import make_dataset
from finpercep.data.dataset.maker import Maker
from finpercep.data.dataset.pairs import find_images
from finpercep.data.degradations.apply import degrade
from finpercep.data.degradations.config import DegradationConfig
from finpercep.data.degradations.draw import draw_parameters
from finpercep.data.sources.kinds import parse_sources
from finpercep.io.images import load_image

BARS = {"degradations": 5.0, "targets": 3.0}
SETTINGS = ((32, 256), (16, 512))  # photos in a batch, their side

Row = dict[str, Any]


def square(path: Path, side: int) -> Tensor:
    """A photo (3,side,side) in [0, 1]: the middle, resized."""
    image = load_image(path)
    least = min(image.shape[1:])
    top, left = ((length - least) // 2 for length in image.shape[1:])
    middle = image[None, :, top : top + least, left : left + least].float() / 255
    return F.interpolate(middle, (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)


def take_turns(routes: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each route, `repeats` times, in turns, after a first call that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in routes}
    for turn in range(repeats + 1):
        for name, route in routes.items():
            start = time.perf_counter()
            route()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measured(seconds: dict[str, list[float]], images: int, ours: str, other: str) -> Row:
    """Images per second of both, and how many times `ours` is faster: the median over turns of the ratio."""
    ratios = [b / a for a, b in zip(seconds[ours], seconds[other], strict=True)]
    return {
        "images": images,
        "per_second": {name: images / statistics.median(times) for name, times in seconds.items()},
        "seconds": seconds,
        "times": statistics.median(ratios),
        "times_range": [min(ratios), max(ratios)],
    }


def degradations(photos: Sequence[Path], count: int, side: int, repeats: int) -> Row:
    """Ours against NumPy and OpenCV; drawing the parameters counts for ours only."""
    images = torch.stack([square(photos[i % len(photos)], side) for i in range(count)])
    seeds = list(range(count))
    drawn = draw_parameters(seeds, DegradationConfig(), height=side, width=side, scale=4)
    samples = plain(drawn, (side // 4, side // 4))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "photos.npy")
        np.save(path, images.permute(0, 2, 3, 1).contiguous().numpy())
        pool = Pool(path, os.cpu_count() or 1)
        try:
            routes = {"ours": lambda: degrade(images, seeds), "opencv": lambda: pool.degrade(samples)}
            seconds = take_turns(routes, repeats)
        finally:
            pool.close()
    return {"side": side, **measured(seconds, count, "ours", "opencv")}


def targets(photos: Sequence[Path], side: int, versions: int, repeats: int) -> Row:
    """`Maker._targets` of a photo's versions with their features: the stage "target" of its clock, by the compiled
    operator and by plain PyTorch."""
    maker = Maker(MakeConfig(), parse_sources(["builtin:bicubic"]))
    gt, *others = ((square(photos[i % len(photos)], side) * 255).round().byte() for i in range(versions + 1))
    compiled = ops.degradation_target
    operators = {"ours": compiled, "eager": partial(compiled, backend="reference")}
    seconds: dict[str, list[float]] = {name: [] for name in operators}
    for turn in range(repeats + 1):
        for name, operator in operators.items():
            maker.clock.seconds.clear()
            with torch.no_grad(), mock.patch.object(ops, "degradation_target", operator):
                maker._targets(gt, others)
            if turn:
                seconds[name].append(maker.clock.seconds["target"])
    return {"side": side, **measured(seconds, versions, "ours", "eager")}


def stages(pattern: str, photos: int) -> list[Row]:
    """A data set of crops of some photos, in this process on one thread: what each stage takes."""
    config = MakeConfig(crop=256, masks=("random", "superpixels"), skip_bad=True)
    names = list(find_images(pattern).items())[:photos]
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "photos")
        inputs.mkdir()
        for number, (_, path) in enumerate(names):
            (inputs / f"{number:03d}{path.suffix}").symlink_to(path.resolve())
        made = make_dataset(str(inputs), ["builtin:all"], Path(folder, "out"), config, workers=1)
    seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for report in made.reports:
        seconds.update(report.seconds)
        counts.update(report.counts)
    rows = [{"stage": name, "images": counts[name], "seconds": spent} for name, spent in seconds.most_common()]
    rows.append(
        {
            "stage": "all",
            "images": sum(report.rows for report in made.reports),
            "seconds": sum(seconds.values()),
        }
    )
    return rows


def markdown(found: Row) -> str:
    """The tables."""
    lines = [
        "{device}, torch {torch}, OpenCV {opencv}".format(**found["machine"])
        + f"; medians of {found['repeats']} turns, range of the ratio in brackets.",
        "",
        "| what | images | ours, images/s | other, images/s | times faster | bar | met |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, other, title in (
        ("degradations", "opencv", "degradations, beside NumPy and OpenCV in {cores} processes"),
        ("targets", "eager", "targets, beside plain PyTorch"),
    ):
        for row in found[name]:
            low, high = row["times_range"]
            lines.append(
                f"| {title.format(cores=found['machine']['cores'])} | {row['images']} of {row['side']}² "
                f"| {row['per_second']['ours']:.0f} | {row['per_second'][other]:.0f} "
                f"| {row['times']:.1f} ({low:.1f}–{high:.1f}) | {BARS[name]:g} "
                f"| {'yes' if row['times'] >= BARS[name] else 'no'} |"
            )
    lines += [
        "",
        "| stage, one process and thread | images | ms per image | images/s |",
        "|---|---:|---:|---:|",
    ]
    for row in found["stages"]:
        each = row["seconds"] / row["images"]
        lines.append(f"| {row['stage']} | {row['images']} | {1e3 * each:.1f} | {1 / each:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    import cv2

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", help="folder, or pattern in quotes")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    photos = list(find_images(arguments.photos).values())
    repeats = arguments.repeats
    found: Row = {
        "machine": {
            "device": device_name(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "opencv": cv2.__version__,
        },
        "repeats": repeats,
        "degradations": [degradations(photos, count, side, repeats) for count, side in SETTINGS],
        "targets": [targets(photos, side, 25, repeats) for side in (320, 384)],
        "stages": stages(arguments.photos, 8),
    }
    text = markdown(found)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "data_throughput.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "data_throughput.md").write_text(text)


if __name__ == "__main__":
    main()
