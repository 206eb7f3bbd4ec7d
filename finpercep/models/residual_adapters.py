"""Residual adapters of convolutional encoders, for the last stage of the curriculum."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finpercep.models.conv_encoder import ConvEncoder
from finpercep.models.lite_encoder import STAGES, LiteEncoder


class ResidualAdapter(nn.Module):
    """x + W·relu(V·x) at each position, with W = 0 at first (Rebuffi et al., 2018, with a bottleneck).

    Shape: (B,channels,h,w) -> the same.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, rank, 1), nn.Conv2d(rank, channels, 1)
        assert self.up.bias is not None
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.relu_(self.down(x)))


def add_residual_adapters(encoder: nn.Module, rank: int) -> None:
    """Put a residual adapter of `rank` channels behind each stage of a convolutional encoder; only they stay trainable.

    Raises:
        ValueError: a vision transformer, or a bad rank.
    """
    if not isinstance(encoder, (ConvEncoder, LiteEncoder)):
        raise ValueError("adapter_rank: expected a convolutional encoder; a vision transformer takes a lora_rank")
    if type(rank) is not int or rank < 1:
        raise ValueError(f"adapter_rank: expected at least 1, got {rank}")
    like = next(encoder.parameters())
    encoder.requires_grad_(False)
    for stage, channels in _stages(encoder):
        stage.append(ResidualAdapter(channels, rank).to(like.device, like.dtype))
    encoder.to(memory_format=torch.channels_last)


def _stages(encoder: ConvEncoder | LiteEncoder) -> list[tuple[nn.Sequential, int]]:
    """The stages that adapters stand behind, and their channels."""
    if isinstance(encoder, ConvEncoder):
        return [(_sequential(stage), width) for stage, width in zip(encoder.stages, encoder.channels, strict=True)]
    own = [(_sequential(stage), row[-1]) for stage, row in zip(encoder.stages, STAGES, strict=True)]
    return _stages(encoder.energy) + own


def _sequential(stage: nn.Module) -> nn.Sequential:
    assert isinstance(stage, nn.Sequential)
    return stage
