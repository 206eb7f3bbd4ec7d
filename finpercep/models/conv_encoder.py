"""A small hierarchical encoder that sees every pixel: strided convolutions and residual blocks, no normalization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))). The second convolution starts small, so that depth does not hinder early training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        initialize(self)
        with torch.no_grad():
            self.conv2.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class ConvEncoder(nn.Module):
    """Feature maps at strides 4, 8, 16, … from full-resolution pixels.

    No batch or group statistics: an image scores the same alone, in a batch or as part of a tiled photo.

    Args:
        channels: width of each stage; stage i has stride 4·2^i.
        depths: residual blocks in each stage.

    Shape: images (B,3,H,W) in [0, 1], sides multiples of `stride` -> list of (B,C_i,H/s_i,W/s_i), fine to coarse.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 128), depths: Sequence[int] = (1, 1, 2)) -> None:
        super().__init__()
        if len(channels) != len(depths) or not channels:
            raise ValueError(
                f"depths: expected one for each of the channels {tuple(channels)}, got {tuple(depths)}"
            )
        self.channels = list(channels)
        self.upsampling = [1] * len(channels)  # already a pyramid
        self.stride = 4 * 2 ** (len(channels) - 1)
        self.stem = initialize(
            nn.Sequential(
                nn.Conv2d(3, channels[0] // 2, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Conv2d(channels[0] // 2, channels[0], 3, stride=2, padding=1),
            )
        )
        self.stages = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(channels, depths, strict=True)):
            down = [initialize(nn.Conv2d(channels[i - 1], width, 3, stride=2, padding=1))] if i else []
            self.stages.append(nn.Sequential(*down, *(ResidualBlock(width) for _ in range(depth))))
        self.radius = _receptive_radius(depths)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.stem((images * 4 - 2).contiguous(memory_format=torch.channels_last))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def initialize(module: nn.Module) -> nn.Module:
    """He initialization: without normalization, PyTorch's default lets the signal fade and the biases take over."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return module


def _receptive_radius(depths: Sequence[int]) -> int:
    """How many pixels away an input pixel can still move a feature."""
    radius = 2 + 2  # the two stem convolutions, at strides 1 and 2
    for i, depth in enumerate(depths):
        stride = 4 * 2**i
        radius += 2 * depth * stride + (stride // 2 if i else 0)
    return radius
