"""``python -m benchmarks.half_precision SR_PAIRS [--models MODEL …] [--every N]``: what half precision changes.

Beside float32, for models in bfloat16 and float16 and for autocast: the largest change of a score and the least cosine
between gradients to the pixels, over photos of `val` and all results for them; the least rank correlation of scores in
groups of images that are nearly the same; and the time of a score with its gradient, as a multiple of float32's.
Prints, and writes `results/half_precision.json`, which keeps the rows of other models.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.target_choices import rank_correlation
from finpercep import RewardModel
from finpercep.data import load_scenes
from finpercep.io.files import write_json

RESULTS = Path(__file__).parent / "results"
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
GROUPS, GROUP, SIDE = 3, 16, 192

Score = Callable[[Tensor], Tensor]
"""Images (B,3,H,W) to scores (B,)."""


class Answers(NamedTuple):
    """Scores (N,) and gradients to the pixels of N images, the scores (GROUP,) of each group, and the seconds taken."""

    scores: Tensor
    gradients: list[Tensor]
    groups: list[Tensor]
    seconds: float


def ways(name: str) -> dict[str, Score]:
    """The model in float32, in half precision, and under autocast."""
    exact = RewardModel.from_pretrained(name).requires_grad_(False)
    found: dict[str, Score] = {"fp32": lambda images: exact(images).score}
    for kind, dtype in HALVES.items():
        half = RewardModel.from_pretrained(name, dtype=dtype).requires_grad_(False)
        found[f"{kind} model"] = lambda images, half=half: half(images).score  # type: ignore[misc]
        found[f"{kind} autocast"] = lambda images, dtype=dtype: _under_autocast(exact, images, dtype)  # type: ignore[misc]
    return found


def _under_autocast(model: RewardModel, images: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype):
        return model(images).score


def nearly_equal(image: Tensor) -> Tensor:
    """A group (GROUP,3,SIDE,SIDE): one image under noise of 0.3 to 0.4 levels."""
    generator = torch.Generator().manual_seed(0)
    corner = image[:, :SIDE, :SIDE]
    strengths = torch.linspace(0.3, 0.4, GROUP).view(-1, 1, 1, 1) / 255
    return (corner + strengths * torch.randn(GROUP, *corner.shape, generator=generator)).clamp(0, 1)


def answers(score: Score, images: list[Tensor], groups: list[Tensor]) -> Answers:
    scores, gradients, started = [], [], time.perf_counter()
    for image in images:
        pixels = image[None].clone().requires_grad_()
        scores.append(score(pixels))
        gradients.append(torch.autograd.grad(scores[-1].sum(), pixels)[0].flatten())
    seconds = time.perf_counter() - started
    with torch.no_grad():
        return Answers(torch.cat(scores).detach(), gradients, [score(group) for group in groups], seconds)


def compared(exact: Answers, half: Answers) -> dict[str, float]:
    """The figures of one way beside float32."""
    pairs = list(zip(exact.gradients, half.gradients, strict=True))
    return {
        "largest_change": (exact.scores - half.scores).abs().max().item(),
        "least_cosine": min(torch.cosine_similarity(a.double(), b.double(), dim=0).item() for a, b in pairs),
        "least_rank_correlation": min(rank_correlation(a, b) for a, b in zip(exact.groups, half.groups, strict=True)),
        "times_fp32": half.seconds / exact.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with index.jsonl")
    parser.add_argument("--models", nargs="+", default=["finpercep-tiny", "finpercep-small"])
    parser.add_argument("--every", type=int, default=1, help="take every n-th scene")
    args = parser.parse_args()
    scenes = load_scenes(args.data, "val")[:: args.every]
    images = [x.float() / 255 for scene in scenes for x in (scene.gt, *(scene.sr(s) for s in scene.sources))]
    groups = [nearly_equal(scene.sr(scene.sources[0]).float() / 255) for scene in scenes[:GROUPS]]
    path = RESULTS / "half_precision.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for name in args.models:
        given = {way: answers(score, images, groups) for way, score in ways(name).items()}
        exact = given.pop("fp32")
        spread = max(group.std().item() for group in exact.groups)
        found[name] = {
            "fingerprint": RewardModel.from_pretrained(name).fingerprint,
            "photos": len(scenes),
            "images": len(images),
            "largest_std_of_a_group": spread,
        }
        found[name] |= {way: compared(exact, half) for way, half in given.items()}
        print(name, json.dumps(found[name], indent=1), flush=True)
        write_json(path, found)


if __name__ == "__main__":
    main()
