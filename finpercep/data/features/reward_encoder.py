"""The reward model's own encoder as a feature extractor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finpercep.models import RewardModel
from finpercep.models.tiles import pad_to_multiple

__all__ = ["RewardFeatures"]


class RewardFeatures:
    """The last map of a reward model's encoder.

    Shape: (B,3,H,W) in [0, 1] -> (B,C,ceil(H/stride),ceil(W/stride)).
    """

    def __init__(self, name_or_path: str, *, device: str = "cpu") -> None:
        model = RewardModel.from_pretrained(name_or_path).eval()
        self.name, self.fingerprint = Path(name_or_path).name, model.fingerprint
        self.encoder: Any = model.encoder.to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.encoder(pad_to_multiple(images.to(self.device), self.encoder.stride))[-1].contiguous()
