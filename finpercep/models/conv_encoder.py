"""A small hierarchical encoder that sees every pixel: filter energies and residual blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finpercep.models.conv3x3 import conv3x3_relu
from finpercep.models.energy_stem import EnergyStem
from finpercep.models.norms import convolution, scale_output
from finpercep.models.precision import KeepsFloat32, without_autocast


class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))). The second convolution starts small: depth does not hinder early training."""

    def __init__(self, channels: int, *, norm: bool) -> None:
        super().__init__()
        self.conv1 = convolution(channels, channels, 3, norm=norm)
        self.conv2 = convolution(channels, channels, 3, norm=norm)
        scale_output(self.conv2, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return conv3x3_relu(self.conv2, conv3x3_relu(self.conv1, x), residual=x)


class ConvEncoder(KeepsFloat32):
    """Feature maps at strides 4, 8, 16, … from full-resolution pixels.

    In float32 in models of half precision and under autocast: bfloat16 turns gradients to pixels, and moves scores.

    Args:
        channels: width of each stage; stage i has stride 4·2^i.
        depths: residual blocks in each stage.
        norm: whether convolutions are normalized, for training; see `norms`.

    Shape: images (B,3,H,W) in [0, 1], sides multiples of `stride` -> list of (B,C_i,H/s_i,W/s_i), fine to coarse.
    """

    def __init__(
        self,
        channels: Sequence[int] = (48, 64, 96),
        depths: Sequence[int] = (1, 1, 1),
        *,
        norm: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) != len(depths) or not channels:
            raise ValueError(f"depths: expected one for each of the channels {tuple(channels)}, got {tuple(depths)}")
        self.channels = list(channels)
        self.upsampling = [1] * len(channels)  # already a pyramid
        self.stride = 4 * 2 ** (len(channels) - 1)
        self.stem = EnergyStem(channels[0], norm=norm)
        self.stages = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(channels, depths, strict=True)):
            blocks: list[nn.Module] = [ResidualBlock(width, norm=norm) for _ in range(depth)]
            if i:
                down = convolution(channels[i - 1], width, 3, stride=2, norm=norm)
                blocks = [down, nn.ReLU(inplace=True), *blocks]
            self.stages.append(nn.Sequential(*blocks))
        self.radius = _receptive_radius(depths)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        with without_autocast(images.device):
            x = self.stem(images.to(next(self.parameters()).dtype))
            for stage in self.stages:
                x = stage(x)
                features.append(x)
        return features


def _receptive_radius(depths: Sequence[int]) -> int:
    """How many pixels away an input pixel can still move a feature."""
    radius = 4 + 4  # the stem: a 3x3 filter at stride 4
    for i, depth in enumerate(depths):
        stride = 4 * 2**i
        radius += 2 * depth * stride + (stride // 2 if i else 0)
    return radius
