"""A reward model around a public CLIP checkpoint: its vision tower, and a decoder and head still to be trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from finpercep.models.attention import DEFAULT_ATTENTION, with_attention
from finpercep.models.clip_files import check_vision_tower, clip_folder, load_vision_tower, vision_config
from finpercep.models.presets import PRESETS
from finpercep.models.vit_encoder import ViTEncoder

Model = TypeVar("Model", bound=nn.Module)


def build_preset(
    build: Callable[[dict[str, Any], dict[str, Any] | None], Model],
    name: str,
    *,
    clip: str | Path | None = None,
    decoder: str | None = "light",
    seed: int = 0,
    attn_implementation: str = DEFAULT_ATTENTION,
    **hub_options: Any,
) -> Model:
    """See `RewardModel.from_preset`; `build` makes a model from the configurations of its encoder and decoder."""
    if name not in PRESETS:
        raise ValueError(f"{name}: no such preset; presets: {', '.join(PRESETS)}")
    preset = PRESETS[name]
    folder = clip_folder(clip if clip is not None else preset.clip, **hub_options)
    config = vision_config(folder)
    expected, given = (preset.taps[-1], preset.patch_size), (config["num_hidden_layers"], config["patch_size"])
    if given != expected:
        raise ValueError(
            f"{folder}: {name} takes a CLIP with {expected[0]} layers and patches of {expected[1]} "
            f"pixels, got {given[0]} layers and patches of {given[1]}"
        )
    check_vision_tower(folder, config, preset.taps)
    encoder = {"type": "vit", "config": config, "taps": list(preset.taps)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(with_attention(encoder, attn_implementation), None if decoder is None else {"width": decoder})
    tower = model.encoder
    assert isinstance(tower, ViTEncoder)
    load_vision_tower(tower, folder)
    new = "head is" if decoder is None else "decoder and head are"
    warnings.warn(f"{name}: the {new} new and untrained; scores and maps mean nothing before training", stacklevel=3)
    return model.eval()
