"""The loops of others, made small: a figure for each image, which the image moves."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from benchmarks import peers

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    "build",
    [
        lambda: peers.clip_iqa(TINY),
        lambda: peers.pick_score(TINY, TINY),
        lambda: peers.image_reward(TINY, TINY),
    ],
)
def test_a_figure_for_each_image(build: Callable[[], peers.Score]) -> None:
    torch.manual_seed(0)
    images = [Image.new("RGB", (250, 300), color) for color in ("white", "black", "white")]
    with torch.no_grad():
        first, second, third = build()(images)  # type: ignore[misc]
    assert math.isfinite(first)
    assert first == third != second
