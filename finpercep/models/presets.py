"""Named starting points around public CLIP checkpoints: their encoder, and a decoder and head still to be trained."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from finpercep.models.reward_model import RewardModel


class Preset(NamedTuple):
    """A public CLIP checkpoint and the layers whose features are used; the last one is its last layer."""

    clip: str
    patch_size: int
    taps: tuple[int, ...]


PRESETS = {
    "finpercep-vit-b-16": Preset("openai/clip-vit-base-patch16", 16, (3, 6, 9, 12)),
    "finpercep-vit-l-14": Preset("openai/clip-vit-large-patch14", 14, (6, 12, 18, 24)),
}


def build_preset(
    name: str,
    *,
    clip: str | Path | None = None,
    decoder: str | None = "light",
    seed: int = 0,
    attn_implementation: str = "sdpa",
    **hub_options: Any,
) -> RewardModel:
    """A reward model with CLIP's vision tower; decoder and head are new: **untrained**, and a warning says so.

    Args:
        name: one of `PRESETS`.
        clip: folder with config.json and model.safetensors of a CLIPModel or CLIPVisionModel, or a hub id. None is
            the preset's own checkpoint on the hub.
        decoder: width "light" or "full", or None for a model without a map.
        seed: of the new parts.
        attn_implementation: see `ViTEncoder`.
        **hub_options: for the download, see `RewardModel.from_pretrained`.

    Raises:
        TypeError: another option.
        ValueError: unknown name, or a checkpoint that is missing or of another size.
    """
    from finpercep.models.clip_files import clip_folder, load_vision_tower, vision_config
    from finpercep.models.reward_model import RewardModel

    if name not in PRESETS:
        raise ValueError(f"{name}: no such preset; presets: {', '.join(PRESETS)}")
    preset = PRESETS[name]
    folder = clip_folder(clip if clip is not None else preset.clip, **hub_options)
    config = vision_config(folder)
    expected, given = (
        (preset.taps[-1], preset.patch_size),
        (config["num_hidden_layers"], config["patch_size"]),
    )
    if given != expected:
        raise ValueError(
            f"{folder}: {name} takes a CLIP with {expected[0]} layers and patches of {expected[1]} "
            f"pixels, got {given[0]} layers and patches of {given[1]}"
        )
    encoder = {"type": "vit", "config": config, "taps": list(preset.taps), "attn_implementation": attn_implementation}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RewardModel(encoder, None if decoder is None else {"width": decoder})
    load_vision_tower(model.encoder, folder)
    new = "head is" if decoder is None else "decoder and head are"
    warnings.warn(f"{name}: the {new} new and untrained; scores and maps mean nothing before training", stacklevel=2)
    return model.eval()
