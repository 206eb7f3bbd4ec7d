"""The whole reward beside its bare encoder: ViT-L/14, 448², batch 16, bf16, compiled; random weights.

`modulate` is a fusion barrier in a compiled model, so the head is measured with the operator and with its definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch

from finpercep.ops import modulate_reference

WITH_OPERATOR = "reward, operator"
VARIANTS = ("encoder", WITH_OPERATOR, "reward, reference")
SIDE, BATCH, LAYERS = 448, 16, 24


@cache
def reward(device: str) -> tuple[Any, torch.Tensor]:
    """The model, and images."""
    from transformers import CLIPVisionConfig

    from finpercep import RewardModel

    sizes: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "projection_dim": 768,
    }
    config = CLIPVisionConfig(**sizes, num_hidden_layers=LAYERS, patch_size=14, image_size=224).to_dict()
    taps = [LAYERS * quarter // 4 for quarter in (1, 2, 3, 4)]
    encoder = {"type": "vit", "config": {"model_type": "clip_vision_model", **config}, "taps": taps}
    model = RewardModel(encoder, {"width": "light"}).eval().to(device, torch.bfloat16)
    return model, torch.rand(BATCH, 3, SIDE, SIDE, device=device, dtype=torch.bfloat16)


@contextmanager
def variant(name: str, device: str) -> Iterator[Callable[[], object]]:
    """One of `VARIANTS` as a call, compiled: it has run once."""
    from finpercep.models import head

    model, images = reward(device)
    compiled = torch.compile(model.encoder if name == "encoder" else model, dynamic=False)
    operator = head.ops
    if name.endswith("reference"):
        head.ops = SimpleNamespace(modulate=modulate_reference)  # type: ignore[assignment]
    try:
        with torch.no_grad():
            compiled(images)
            yield partial(compiled, images)
    finally:
        head.ops = operator
