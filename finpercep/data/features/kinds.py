"""Feature extractors for the fault target, by name: the filter bank, transformers, reward models, perceptual nets."""

from __future__ import annotations

import os
from typing import Any

from finpercep.data.features.protocol import Features
from finpercep.data.kinds import Kind, split_kind

__all__ = ["FEATURE_KINDS", "check_features", "no_features", "open_features"]

_FEATURES = "finpercep.data.features"

FEATURE_KINDS = {
    "filters": Kind("filters", f"{_FEATURES}.filter_bank:FilterFeatures", ("device",), help="needs no weights"),
    "vit": Kind("vit:ID", f"{_FEATURES}.vit:ViTFeatures", ("device",), help="DINOv3, DINOv2, CLIP or SigLIP"),
    "reward": Kind("reward:ID", f"{_FEATURES}.reward_encoder:RewardFeatures", ("device",), help="a reward's encoder"),
    "stlpips": Kind(
        "stlpips:NET",
        f"{_FEATURES}.perceptual:PerceptualFeatures",
        ("device",),
        help="alex or vgg, of the extra stlpips",
    ),
    "none": Kind("none", f"{_FEATURES}.kinds:no_features", help="pixels alone"),
}


def check_features(text: str) -> tuple[str, str]:
    """The kind and the value that ``--features`` names.

    Raises:
        ValueError: it is not one of `FEATURE_KINDS`.
    """
    return split_kind(FEATURE_KINDS, text, "features: expected")


def open_features(text: str, **options: Any) -> Features | None:
    """The extractor that `text` names.

    - ``filters``: the fixed filter bank, offline;
    - ``vit:ID``: DINOv3, DINOv2, CLIP or SigLIP by `transformers`, a folder or a hub id;
    - ``reward:ID``: the last map of a reward model's encoder;
    - ``stlpips:alex``, ``stlpips:vgg``: the networks of ST-LPIPS, whose package brings the weights (extra `stlpips`);
    - ``none``: pixels alone decide (alpha is not used); there is no extractor.

    Args:
        text: see above.
        options: `device`, "cpu" unless given.
    """
    kind, value = check_features(text)
    return FEATURE_KINDS[kind].open(*((os.path.expanduser(value),) if value else ()), **options)


def no_features() -> None:
    """No extractor."""
