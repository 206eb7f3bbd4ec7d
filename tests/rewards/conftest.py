"""A reward whose values are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finpercep.models import RewardOutput


class Brightness(nn.Module):
    """Score: the mean; map: the first channel. Takes "lr" without using it, and counts what it was given."""

    takes = ("lr",)
    fingerprint = "0123456789abcdef"

    def __init__(self, *, with_map: bool = True) -> None:
        super().__init__()
        self.with_map = with_map
        self.given: list[str] = []

    def forward(self, images: Tensor, **context: object) -> RewardOutput:
        self.given = sorted(context)
        return RewardOutput(images.flatten(1).mean(1), images[:, :1] if self.with_map else None)


@pytest.fixture
def images() -> Tensor:
    """As 8-bit files hold them: what rounds to 8 bits leaves them."""
    return torch.randint(1, 255, (3, 3, 20, 10), generator=torch.Generator().manual_seed(1)) / 255
