"""S_base of L_align: the frozen model that a reward model in training is anchored to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from finpercep.models.checkpoint import read_config, resolve
from finpercep.models.clip_iqa import CLIPIQA
from finpercep.models.presets import PRESETS
from finpercep.models.reward_model import RewardModel


def load_base(name_or_path: str | Path, **hub_options: Any) -> RewardModel | CLIPIQA:
    """RM_0 by name, folder or hub id: a `RewardModel`, or a `CLIPIQA` where config.json has prompts.

    The name of a preset gives CLIP-IQA on the preset's CLIP checkpoint, which needs no training.

    Args:
        hub_options: for the download, see `RewardModel.from_pretrained`.

    Returns:
        The model in evaluation mode, without gradients to its weights.

    Raises:
        TypeError: an option that is not one for downloads.
        ValueError: unknown name, or files that do not fit; names the file.
    """
    if (name := os.fspath(name_or_path)) in PRESETS:
        return CLIPIQA.from_clip(PRESETS[name].clip, **hub_options)
    folder = resolve(name_or_path, **hub_options)
    if "prompts" in read_config(folder):
        return CLIPIQA.from_pretrained(folder)
    return RewardModel.from_pretrained(folder).requires_grad_(False)
