"""`python -m benchmarks.peers`: how long one 512 × 512 photo takes, beside other rewards and metrics of its kind.

Architectures without their weights (random ones take as long), each called as its users call it, one PIL image
after another: pyiqa's MUSIQ and TOPIQ where pyiqa is installed (its MANIQA wants weights to be built), CLIP-IQA+'s
ViT-L/14 on the whole photo, and behind their processors, as the scorers of flow_grpo call such models, with a prompt of
as many tokens as they pad to: CLIP ViT-L/14 alone, CLIP ViT-H/14 of PickScore and HPSv2, BLIP ViT-L of ImageReward. All
take turns. Writes `benchmarks/results/peers.json` and `.md`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image

from benchmarks.report import device_name, write_results
from finpercep import RewardModel, Scorer
from finpercep.models.clip_iqa import CLIPIQA

TURNS, IMAGES = 5, 4
Score = Callable[[list[Image.Image]], object]
VIT_L: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
VIT_H: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
}


def one_by_one(model: Callable[[Any], torch.Tensor], prepare: Callable[[Image.Image], Any]) -> Score:
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

    model, processor = CLIPVisionModel(CLIPVisionConfig(**VIT_L, patch_size=14)).eval(), CLIPImageProcessor()
    return one_by_one(lambda given: model(**given).pooler_output, lambda image: processor(image, return_tensors="pt"))


def clip_iqa(vision: Mapping[str, Any] = VIT_L) -> Score:
    """CLIP-IQA+ with a vision transformer: two stored prompts, the photo at its own size."""
    config = {"model_type": "clip_vision_model", **vision, "patch_size": 14, "image_size": 224}
    model = CLIPIQA({"config": config}, 768).eval()
    model.text.normal_()
    return one_by_one(lambda image: model(image).score, pixels)


def pick_score(vision: Mapping[str, Any] = VIT_H, text: Mapping[str, Any] = VIT_L) -> Score:
    """CLIP ViT-H/14 and a prompt, as PickScore and HPSv2 are; the text tower is as large as a ViT-L."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    config = CLIPConfig(vision_config={**vision, "patch_size": 14}, text_config=dict(text), projection_dim=1024)
    model, processor = CLIPModel(config).eval(), CLIPImageProcessor()
    prompt = torch.randint(1, 1000, (1, 77))
    return one_by_one(
        lambda given: model(input_ids=prompt, **given).logits_per_image,
        lambda image: processor(image, return_tensors="pt"),
    )


def image_reward(vision: Mapping[str, Any] = VIT_L, text: Mapping[str, Any] | None = None) -> Score:
    """BLIP with a ViT-L/16 and a text encoder that looks at the image, as ImageReward is."""
    from transformers import BlipConfig, BlipForImageTextRetrieval, CLIPImageProcessor

    config = BlipConfig(
        vision_config={**vision, "patch_size": 16, "image_size": 224},
        text_config={**(text or {}), "encoder_hidden_size": vision["hidden_size"]},
    )
    model, processor = BlipForImageTextRetrieval(config).eval(), CLIPImageProcessor()
    prompt = torch.randint(1, 1000, (1, 35))
    return one_by_one(
        lambda given: model(input_ids=prompt, attention_mask=torch.ones_like(prompt), **given).itm_score,
        lambda image: processor(image, return_tensors="pt"),
    )


def transformers_loops() -> dict[str, Score]:
    return {
        "CLIP-IQA+, ViT-L/14": clip_iqa(),
        "CLIP ViT-L/14 at 224², processor": clip_scorer(),
        "PickScore, HPSv2: CLIP ViT-H/14 at 224², processor and prompt": pick_score(),
        "ImageReward: BLIP ViT-L/16 at 224², processor and prompt": image_reward(),
    }


def main() -> None:
    from skimage import data

    photos = [Image.fromarray(data.astronaut()).rotate(90 * i) for i in range(IMAGES)]
    routes: dict[str, Score] = {}
    for name in ("finpercep-tiny", "finpercep-small"):
        model = RewardModel.from_pretrained(name).requires_grad_(False)
        routes[f"{name}, score and map"] = one_call_each(model)
        routes[f"{name}, score and map, Scorer"] = Scorer(model).score
    routes |= {**pyiqa_architectures(), **transformers_loops()}
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
