"""``python -m benchmarks.target_features SR_PAIRS``: what M_gt is by other features than the filter bank's.

The faults of `target_choices`, of training photos of a folder with `index.jsonl` (never `val`). Distances of features
differ in size, so each has the scale by which its targets are as strong inside the masks, on average, as those of the
filter bank at its own. The last column is M_gt, made as for pairs that a camera took twice, of the photo itself, moved
by 0.6 pixels and 4 levels brighter, which nobody sees: it should be 0. Prints the table of docs/choices.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.target_choices import Choice, Fault, faults, separation, target
from finpercep.data import Scene, fault_target, load_scenes
from finpercep.data.dataset.config import MakeConfig
from finpercep.data.features import open_features
from finpercep.data.features.kinds import FEATURE_KINDS
from finpercep.data.features.protocol import Features
from finpercep.data.kinds import usages

SHIFT, LEVELS = 0.6, 4 / 255
COLUMNS = ("scale", "mean outside", "mass outside", "AUC of the mask", "IoU at 0.5", "grain", "AUC, features alone")
HEAD = f"| features | {' | '.join(COLUMNS)} | moved | s a photo |\n|---|{'---:|' * 9}"


def raw_targets(made: Sequence[Fault], alpha: float = MakeConfig.alpha) -> list[Tensor]:
    """M_gt (H,W) of the implanted photos before it is divided by a scale."""
    return [target(fault, "syn", Choice(alpha, "none")) for fault in made]


def scale_for(raw: Sequence[Tensor], masks: Sequence[Tensor], within: float) -> float:
    """The scale that makes targets this strong inside their masks, on average over faults."""
    low, high = 1e-4, 2.0
    for _ in range(25):
        middle = (low * high) ** 0.5
        strong = sum(float((m / middle).clamp(0, 1)[i].mean()) for m, i in zip(raw, masks, strict=True)) / len(raw)
        low, high = (middle, high) if strong > within else (low, middle)
    return middle


def moved(photo: Tensor) -> Tensor:
    """A photo (3,H,W) in [0, 1], SHIFT pixels to the side and LEVELS brighter."""
    theta = torch.tensor([[[1.0, 0.0, 2 * SHIFT / (photo.shape[-1] - 1)], [0.0, 1.0, 0.0]]])
    grid = F.affine_grid(theta, [1, *photo.shape], align_corners=True)
    return (F.grid_sample(photo[None], grid, "bicubic", "border", align_corners=True)[0] + LEVELS).clamp(0, 1)


def misaligned(scenes: Sequence[Scene], extract: Features, scale: float) -> float:
    photos = [scene.gt.float() / 255 for scene in scenes]
    found = [fault_target(p[None], moved(p)[None], extract, scale=scale, aligned=False) for p in photos]
    return sum(float(one.mean()) for one in found) / len(photos)


def row(name: str, scenes: Sequence[Scene], within: float | None) -> tuple[str, float]:
    """A line of the table, and how strong its targets are inside; the filter bank's decides (`within` None)."""
    extract = open_features(name)
    assert extract is not None
    started = time.process_time()
    extract(scenes[0].gt[None].float() / 255)
    seconds = time.process_time() - started
    made = faults(scenes, extract, ("syn",))
    masks, raw = [fault.mask[0] for fault in made], raw_targets(made)
    scale = MakeConfig.target_scale if within is None else scale_for(raw, masks, within)
    found = separation([(one / scale).clamp(0, 1) for one in raw], masks)
    alone = separation(raw_targets(made, 0.0), masks)["auc"]
    line = (
        f"| `{name}` | {scale:.3f} | {found['beyond']:.3f} | {found['mass']:.0%} | {found['auc']:.3f} "
        f"| {found['iou']:.2f} | {found['grain']:.2f} | {alone:.3f} | {misaligned(scenes, extract, scale):.3f} "
        f"| {seconds:.2f} |"
    )
    return line, found["within"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with index.jsonl")
    parser.add_argument("--every", type=int, default=12, help="take every n-th training scene")
    parser.add_argument(
        "--features",
        nargs="+",
        default=["stlpips:alex", "stlpips:vgg"],
        help=f"beside filters: {usages(FEATURE_KINDS)}",
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    scenes = load_scenes(args.data, "train")[:: args.every]
    print(f"{sum(len(scene.sources) for scene in scenes)} faults of {len(scenes)} training scenes\n\n{HEAD}")
    with torch.no_grad():
        line, within = row("filters", scenes, None)
        print(line)
        for name in args.features:
            print(row(name, scenes, within)[0], flush=True)


if __name__ == "__main__":
    main()
