"""`python -m benchmarks.peers`: how long one 512 × 512 photo takes, beside other rewards and metrics of its kind.

Architectures without their weights (random ones take as long), each called as its users call it, one PIL image
after another: pyiqa's MUSIQ and TOPIQ where pyiqa is installed (its MANIQA wants weights to be built), and CLIP
ViT-L/14 behind its processor, as the scorers of flow_grpo call such models. All take turns. Writes
`benchmarks/results/peers.json` and `.md`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from benchmarks.report import device_name, write_results
from finpercep import RewardModel, Scorer

TURNS, IMAGES = 5, 4
Score = Callable[[list[Image.Image]], object]


def one_by_one(model: torch.nn.Module, prepare: Callable[[Image.Image], torch.Tensor]) -> Score:
    """A loop over PIL images, as most scorers have it."""

    def score(images: list[Image.Image]) -> list[float]:
        return [float(model(prepare(image)).float().mean()) for image in images]

    return score


def one_call_each(model: RewardModel) -> Score:
    """Our model on one image after the other, with its map."""
    return lambda images: [model.score([image]) for image in images]


def pixels(image: Image.Image) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def pyiqa_architectures() -> dict[str, Score]:
    """What pyiqa builds without a download; nothing without pyiqa."""
    try:
        from pyiqa.archs.musiq_arch import MUSIQ
        from pyiqa.archs.topiq_arch import CFANet
    except ImportError as error:
        print(f"without pyiqa: {error}")
        return {}
    builders: dict[str, Callable[[], Any]] = {
        "MUSIQ (pyiqa)": lambda: MUSIQ(pretrained=False),
        "TOPIQ, ResNet-50 (pyiqa)": lambda: CFANet(use_ref=False, pretrained=False, backbone_pretrain=False),
    }
    found = {}
    for name, build in builders.items():
        try:
            found[name] = one_by_one(build().eval(), pixels)
        except Exception as error:  # one that wants weights from the network
            print(f"{name}: {type(error).__name__}: {str(error)[:150]}")
    return found


def clip_scorer() -> Score:
    """CLIP ViT-L/14 at 224² behind its processor, with random weights."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    )
    model, processor = CLIPVisionModel(config).eval(), CLIPImageProcessor()

    def score(images: list[Image.Image]) -> list[float]:
        return [float(model(**processor(images=image, return_tensors="pt")).pooler_output.mean()) for image in images]

    return score


def main() -> None:
    from skimage import data

    photos = [Image.fromarray(data.astronaut()).rotate(90 * i) for i in range(IMAGES)]
    routes: dict[str, Score] = {}
    for name in ("finpercep-tiny", "finpercep-small"):
        model = RewardModel.from_pretrained(name).requires_grad_(False)
        routes[f"{name}, score and map"] = one_call_each(model)
        routes[f"{name}, score and map, Scorer"] = Scorer(model).score
    routes |= {**pyiqa_architectures(), "CLIP ViT-L/14 at 224², processor": clip_scorer()}
    seconds: dict[str, list[float]] = {name: [] for name in routes}
    with torch.no_grad():
        for turn in range(TURNS + 1):
            for name, route in routes.items():
                started = time.perf_counter()
                route(photos if turn else photos[:1])
                if turn:
                    seconds[name].append((time.perf_counter() - started) / IMAGES)
    first = next(iter(routes))
    rows = [
        {
            "route": name,
            "ms": 1e3 * statistics.median(times),
            "of_first": statistics.median(a / b for a, b in zip(times, seconds[first], strict=True)),
        }
        for name, times in seconds.items()
    ]
    lines = [f"{device_name()}, torch {torch.__version__}; medians of {TURNS} turns of {IMAGES} photos.", ""]
    lines += ["| reward | ms per photo of 512 × 512 | times the first |", "|---|---:|---:|"]
    lines += [f"| {row['route']} | {row['ms']:.0f} | {row['of_first']:.2f} |" for row in rows]
    print("\n".join(lines))
    write_results("peers", rows, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
