"""``python -m benchmarks.slight_damage SR_PAIRS [--models MODEL …]``: which damage to a whole photo a score sees.

Prints and writes `results/slight_damage.json`, which keeps the rows of other models, by model: of the photos of `val`,
the share that scores above its damaged copy, the mean change of the score, and the mean M_gt of the copy; the range of
the photos' scores; and the scores of images that are no photos. Checkerboards stand for what a generator finds that
climbs a score.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finpercep import RewardModel
from finpercep.data import FilterBank, fault_target, load_scenes
from finpercep.data.image_ops import gaussian_blur, jpeg
from finpercep.io.files import write_json

RESULTS = Path(__file__).parent / "results"
SIDE = 256  # of images that are no photos


def _noisy(image: Tensor, sigma: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (image + sigma / 255 * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    return gaussian_blur(image, sigma).clamp(0, 1)


def _sharpened(image: Tensor, amount: float) -> Tensor:
    """Unsharp masking of σ 1."""
    return (image + amount * (image - gaussian_blur(image, 1.0))).clamp(0, 1)


def _contrasted(image: Tensor, factor: float) -> Tensor:
    return (0.5 + factor * (image - 0.5)).clamp(0, 1)


def _dithered(image: Tensor, levels: int) -> Tensor:
    """So many levels a channel, by Bayer's ordered dither of 4 x 4."""
    bayer = torch.tensor([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
    height, width = image.shape[1:]
    rows, columns = torch.arange(height)[:, None] % 4, torch.arange(width) % 4
    return (image * (levels - 1) + (bayer[rows, columns] + 0.5) / 16).floor().clamp(0, levels - 1) / (levels - 1)


def _board(side: int, height: int, width: int) -> Tensor:
    """A checkerboard (1,H,W) of 0 and 1, its squares `side` pixels wide."""
    rows, columns = torch.arange(height)[:, None] // side, torch.arange(width) // side
    return ((rows + columns) % 2).float()[None]


def _checkered(image: Tensor, side: int, amplitude: float) -> Tensor:
    return (image + amplitude * (2 * _board(side, *image.shape[1:]) - 1)).clamp(0, 1)


DAMAGE: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"JPEG {q}": partial(jpeg, quality=q) for q in (95, 75, 40, 20)},
    **{f"noise of σ {s}/255": partial(_noisy, sigma=s) for s in (2, 5)},
    **{f"blur of σ {s}": partial(_blurred, sigma=s) for s in (1, 2)},
    **{f"sharpened by {a:g}": partial(_sharpened, amount=a) for a in (0.5, 1.5)},
    **{f"contrast of {f:g}": partial(_contrasted, factor=f) for f in (0.8, 1.2)},
    **{f"{n} levels, dithered": partial(_dithered, levels=n) for n in (64, 16)},
    # What no 8-bit file would hold, and the least that one does.
    "checkerboard of 1 px, ±0.4 levels": partial(_checkered, side=1, amplitude=0.4 / 255),
    "checkerboard of 1 px, ±1 level": partial(_checkered, side=1, amplitude=1 / 255),
    **{
        f"checkerboard of {n} px, ±{a:g}": partial(_checkered, side=n, amplitude=a) for n in (1, 2) for a in (0.05, 0.2)
    },
}


def scores(model: RewardModel, images: list[Tensor]) -> Tensor:
    return torch.cat([model.score([image]).score for image in images])


def severity(photo: Tensor, damaged: Tensor) -> float:
    """Mean M_gt of what a file would hold of a damaged copy."""
    stored = (damaged * 255).round() / 255
    return fault_target(photo[None], stored[None], FilterBank()).mean().item()


def damage_seen(model: RewardModel, photos: list[Tensor]) -> dict[str, Any]:
    """The figures of one model."""
    clean = scores(model, photos)
    found: dict[str, Any] = {
        "fingerprint": model.fingerprint,
        "photos": len(photos),
        "clean": {"lowest": clean.min().item(), "median": clean.median().item(), "highest": clean.max().item()},
    }
    print(f"{len(photos)} photos score {clean.min():.2f} to {clean.max():.2f}, median {clean.median():.2f}")
    for name, damage in DAMAGE.items():
        damaged = [damage(photo) for photo in photos]
        drop = clean - scores(model, damaged)
        above, harm = (drop > 0).float().mean().item(), sum(map(severity, photos, damaged)) / len(photos)
        found[name] = {
            "photo_above": above,
            "mean_drop": drop.mean().item(),
            "largest_gain": -drop.min().item(),
            "severity": harm,
        }
        print(f"{name}: photo above its copy in {above:.2f}; mean drop {drop.mean():.3f}; M_gt {harm:.3f}", flush=True)
    generator = torch.Generator().manual_seed(0)
    others = {
        "black": torch.zeros(3, SIDE, SIDE),
        "white": torch.ones(3, SIDE, SIDE),
        "uniform noise": torch.rand(3, SIDE, SIDE, generator=generator),
        **{f"checkerboard of {n} px": _board(n, SIDE, SIDE).expand(3, -1, -1) for n in (1, 2, 4)},
    }
    found["no photos"] = dict(zip(others, scores(model, list(others.values())).tolist(), strict=True))
    print(found["no photos"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with index.jsonl")
    parser.add_argument("--models", nargs="+", default=["finpercep-tiny", "finpercep-small", "finpercep-small-rl"])
    args = parser.parse_args()
    photos = [scene.gt.float() / 255 for scene in load_scenes(args.data, "val")]
    path = RESULTS / "slight_damage.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    for name in args.models:
        print(name)
        found[name] = damage_seen(RewardModel.from_pretrained(name), photos)
        write_json(path, found)


if __name__ == "__main__":
    main()
