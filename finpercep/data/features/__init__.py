"""Features that the fault target compares: the filter bank and encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finpercep._lazy import lazy

if TYPE_CHECKING:
    from finpercep.data.features.filter_bank import FilterBank, FilterFeatures
    from finpercep.data.features.kinds import FEATURE_KINDS, check_features, open_features
    from finpercep.data.features.perceptual import PERCEPTUAL_NETS, PerceptualFeatures
    from finpercep.data.features.protocol import Features
    from finpercep.data.features.reward_encoder import RewardFeatures
    from finpercep.data.features.vit import ViTFeatures

__all__ = [
    "FEATURE_KINDS",
    "PERCEPTUAL_NETS",
    "Features",
    "FilterBank",
    "FilterFeatures",
    "PerceptualFeatures",
    "RewardFeatures",
    "ViTFeatures",
    "check_features",
    "open_features",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "FEATURE_KINDS": "finpercep.data.features.kinds",
        "PERCEPTUAL_NETS": "finpercep.data.features.perceptual",
        "Features": "finpercep.data.features.protocol",
        "FilterBank": "finpercep.data.features.filter_bank",
        "FilterFeatures": "finpercep.data.features.filter_bank",
        "PerceptualFeatures": "finpercep.data.features.perceptual",
        "RewardFeatures": "finpercep.data.features.reward_encoder",
        "ViTFeatures": "finpercep.data.features.vit",
        "check_features": "finpercep.data.features.kinds",
        "open_features": "finpercep.data.features.kinds",
    },
)
