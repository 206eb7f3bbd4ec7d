"""Feature extractors for the fault target, by name: the filter bank, vision transformers, reward models."""

from __future__ import annotations

import os
from typing import Protocol

import torch
from torch import Tensor

from finpercep.data.features.filter_bank import FilterBank


class Features(Protocol):
    """Maps images (B,3,H,W), float in [0, 1], to features (B,C,h,w); `fingerprint` changes when they would."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    def __call__(self, images: Tensor) -> Tensor: ...


class FilterFeatures:
    """`FilterBank`: no weights, no download."""

    name = "filters"
    fingerprint = "filters-1"

    def __init__(self, device: str = "cpu") -> None:
        self.bank = FilterBank().to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.bank(images.to(self.device))


def check_features(text: str) -> None:
    """Raises ValueError where `open_features` would not know the name."""
    kind, _, value = text.partition(":")
    if text not in ("filters", "none") and not (kind in ("vit", "reward") and value):
        raise ValueError(f"features: expected filters, vit:ID, reward:ID or none, got {text!r}")


def open_features(text: str, *, device: str = "cpu") -> Features | None:
    """The extractor that `text` names.

    - ``filters``: the fixed filter bank, offline;
    - ``vit:ID``: DINOv3, DINOv2 or CLIP by `transformers`, a folder or a hub id;
    - ``reward:ID``: the last map of a reward model's encoder;
    - ``none``: pixels alone decide (alpha is not used).
    """
    check_features(text)
    if text == "none":
        return None
    if text == "filters":
        return FilterFeatures(device)
    from finpercep.data.features.encoder_models import RewardFeatures, ViTFeatures

    kind, _, value = text.partition(":")
    value = os.path.expanduser(value)
    return ViTFeatures(value, device=device) if kind == "vit" else RewardFeatures(value, device=device)
